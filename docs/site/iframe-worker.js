// Browsers start no Worker from a page on the disk. There its script runs in a hidden frame, so that the search works.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const script = frame.contentDocument.createElement("script")
      frame.contentWindow.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = new Promise(resolve => (script.onload = () => resolve(frame.contentWindow)))
      script.src = url
      frame.contentDocument.head.append(script)
    }
    async postMessage(data) {
      (await this.ready).dispatchEvent(new MessageEvent("message", { data }))
    }
  }
}
