"""``vidssl eval`` and ``vidssl compare`` on networks nobody trained: protocols, kept features, scores."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import toy_probe
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_probe import encoder_passes, recipe_text

from vidssl.cli.main import main
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.engine.checkpoint import tensors_digest
from vidssl.evaluate import feature_cache as feature_store
from vidssl.evaluate.score_file import flattened, read_scores
from vidssl.evaluators.statistics import paired_difference


def make_run(name: str, *, seed: int, change: tuple[str, str] = ("", "")) -> None:
    toy_probe.make_run(Path("runs") / name, recipe_text(name).replace(*change), seed=100 + seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for number, name in enumerate(("a", "b")):
            make_run(name, seed=number)
        assert main(["eval", "runs/a", "--protocol", "knn"]) == 0
        assert main(["eval", "runs/b", "--protocol", "knn"]) == 0
    return path


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def encoder_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the passes that the encoder makes over videos."""
    return encoder_passes(monkeypatch)


def flat(said: str) -> str:
    return re.sub(r"\s+", " ", said)


def test_temporal_scores_normal_and_other_orders_in_columns_of_one_table(folder, capsys):
    quick = ("evaluator.penalties=[10.0]", "evaluator.max_iterations=5")
    assert main(["eval", "runs/a", "--protocol", "temporal", *quick]) == 0
    said = flat(capsys.readouterr().out)
    assert all(order in said for order in ("single", "shuffled", "reversed"))
    scores = read_scores(Path("runs/a/scores/temporal-step-000005.json")).scores["trained"]
    assert [score.frames for score in scores[:4]] == ["normal", "single", "shuffled", "reversed"]
    assert len(scores) == 4 * 5  # five labels
    assert scores[0].predicted != scores[3].predicted


def test_features_are_kept_and_read_again(folder, encoder_runs, capsys):
    assert main(["eval", "runs/a", "--protocol", "retrieval"]) == 0
    assert encoder_runs == []  # knn has read the same videos through the same views
    assert capsys.readouterr().out.count("features read from runs/a/features/") == 4


@pytest.mark.parametrize(
    ("override", "anew"),
    [
        ("evaluator.k=3", []),
        ("batch_size=7", []),
        ("average=scores", []),
        ("layers=all", ["train", "test"]),
        ("frames=[normal, reversed]", ["test"]),
        ("data.test.num_videos=10", ["test"]),
        ("data.views.num_crops=3", ["train", "test"]),
        ("train_views={type: uniform_clips, num_frames: 2, frame_stride: 1, size: 32}", ["train"]),
    ],
)
def test_features_are_computed_anew_where_they_would_be_others(override, anew, folder, encoder_runs):
    assert main(["eval", "runs/b", "--protocol", "knn", override, "name=other"]) == 0
    assert encoder_runs == [
        f"{network} network, {part} videos" for network in ("trained", "untrained") for part in anew
    ]


def test_other_weights_and_other_code_have_features_of_their_own(folder, encoder_runs, monkeypatch):
    make_run("c", seed=2)
    assert main(["eval", "runs/c", "--protocol", "knn"]) == 0
    path = Path("runs/c/checkpoints/step-000005.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    bias = next(key for key in state if key.endswith("bias"))
    save_file({**state, bias: state[bias] + 1e-3}, path, metadata=metadata)
    encoder_runs.clear()
    assert main(["eval", "runs/c", "--protocol", "knn"]) == 0
    assert encoder_runs == ["trained network, train videos", "trained network, test videos"]
    encoder_runs.clear()
    monkeypatch.setattr(feature_store, "code_hash", lambda: "changed")
    assert main(["eval", "runs/c", "--protocol", "knn"]) == 0
    assert len(encoder_runs) == 4


def test_kept_features_name_their_videos_and_what_they_depend_on(folder):
    path = next(iter(sorted(Path("runs/a/features").glob("*.safetensors"))))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("vectors.normal").shape == (12, 1, 16)
    assert len(json.loads(metadata["videos"])) == 12
    for word in ("weights", "views", "layers", "frames", "precision", "videos"):
        assert f"\n{word}:" in "\n" + metadata["key"]


def test_scores_that_cannot_be_written_are_shown(folder, capsys):
    make_run("full", seed=4)
    # in the way of what is to be written, as a full disk is, and for any user
    Path("runs/full/features").touch()
    Path("runs/full/scores/knn-step-000005.json/x").mkdir(parents=True)
    assert main(["eval", "runs/full", "--protocol", "knn"]) == 2
    said = capsys.readouterr()
    assert "These features are not kept" in said.out
    assert "chance %" in said.out
    assert said.err.count("\n") == 1
    assert "The scores of 'knn' are shown above and not kept: make room, or copy" in said.err


@pytest.mark.parametrize("spoil", ["cut", "changed"])
def test_damaged_features_are_made_anew(spoil, folder, encoder_runs, capsys):
    make_run(spoil, seed=3)
    assert main(["eval", f"runs/{spoil}", "--protocol", "knn"]) == 0
    path = next(iter(sorted(Path(f"runs/{spoil}/features").iterdir())))
    content = path.read_bytes()
    other = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(content[:-8] if spoil == "cut" else other)
    encoder_runs.clear()
    capsys.readouterr()
    assert main(["eval", f"runs/{spoil}", "--protocol", "knn"]) == 0
    said = flat(capsys.readouterr().out)
    assert f"{path}: damaged" in said
    assert "The features are computed again." in said
    assert len(encoder_runs) == 1
    vectors = load_file(path)["vectors.normal"]
    path.write_bytes(content)
    assert torch.equal(load_file(path)["vectors.normal"], vectors)


def test_a_video_that_is_replaced_or_gone_is_noticed(folder, encoder_runs, capsys):
    """Features are those of the files as they are, not as they were."""
    words = ["name=replaced"]
    for part in ("train", "test"):
        origin = MovingDigits(split=part, num_videos=4).origin(0)
        shutil.copytree(Path(origin.file).parent, part)
        Path(f"{part}.txt").write_text("".join(f"{number:06d}.mp4 {number % 2}\n" for number in range(4)))
        words.append(f"data.{part}={{type: video_list, root: {part}, list: {part}.txt}}")

    def anew() -> tuple[int, int]:
        encoder_runs.clear()
        return main(["eval", "runs/a", "--protocol", "knn", *words]), len(encoder_runs)

    assert anew() == (0, 4)
    assert anew() == (0, 0)
    shutil.copyfile("test/000000.mp4", "test/000001.mp4")
    assert anew() == (0, 2)
    Path("test/000002.mp4").unlink()
    capsys.readouterr()
    assert anew() == (0, 2)
    assert "left out: 000002.mp4: the file does not exist" in flat(capsys.readouterr().out)


def test_other_views_are_learned_from_than_tested_on(folder):
    """One clip for train, three crops for test; and the other way round is another number of samples."""
    words = ("name=views", "average=scores", "evaluator.k=12")
    crops = "views={type: uniform_clips, num_frames: 4, frame_stride: 1, size: 32, num_crops: 3}"
    one = "train_views={type: uniform_clips, num_frames: 4, frame_stride: 1, size: 32}"
    assert main(["eval", "runs/a", "--protocol", "knn", *words, crops, one]) == 0
    text = read_scores(Path("runs/a/scores/views-step-000005.json")).protocol
    assert flattened(text)["data.views.num_crops"] == "3"
    assert flattened(text)["train_views.num_crops"] == "1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("knn", "views={type: uniform_clips}", "data.views.size=32"), "given twice"),
        (("knn", "frames=[single]"), "must hold 'normal'"),
        (("knn", "frames=[normal, normal]"), "nothing twice"),
        (("knn", "frames=[normal, sorted]"), "expected"),
        (("knn", "average=sums"), "expected 'features' or 'scores' or 'probabilities'"),
        (("retrieval", "average=scores"), "reports what was found"),
        (("knn", "data.views={type: global_local}"), "as many views of every name"),
    ],
)
def test_mistakes_in_a_protocol_are_one_line(words, says, folder, capsys):
    assert main(["eval", "runs/a", "--protocol", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said


def test_score_file_is_a_whole_card(folder):
    record = json.loads(Path("runs/a/scores/knn-step-000005.json").read_text())
    test = record["videos"]["test"]
    assert (test["found"], test["listed"], test["unreadable"]) == (12, 12, [])
    hashes = (record["checkpoint_sha256"], record["card_sha256"], record["protocol_sha256"], test["sha256"])
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
    assert len(set(hashes)) == 4
    assert "torch" in record["environment"]["versions"]
    assert "type: vit" in record["recipe"]
    assert "temperature: 0.07" in record["protocol"]
    file = read_scores(Path("runs/a/scores/knn-step-000005.json"))
    assert len(file.keys) == 12
    for network in ("trained", "untrained"):
        for score in file.scores[network]:
            truth = file.truth[score.label]
            right = sum(a == b for a, b in zip(score.predicted, truth, strict=True))
            assert right / len(truth) == pytest.approx(score.top1)


def test_compare_shows_runs_beside_each_other(folder, capsys):
    assert main(["compare", "runs/a", "runs/b"]) == 0
    said = flat(capsys.readouterr().out)
    for word in ("runs/a", "runs/b", "trained", "untrained", "chance", "p adjusted", "digit", "profile"):
        assert word in said
    assert "recipes: the same but for their names" in said


def test_compare_tells_what_differs_between_recipes(folder, capsys):
    make_run("wide", seed=0, change=("lr: 1e-3", "lr: 2e-3"))
    assert main(["eval", "runs/wide", "--protocol", "knn"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs/a", "runs/wide", "--markdown"]) == 0
    said = capsys.readouterr().out
    table = said[said.index("recipes: what differs") :]
    assert "| optim.lr | 0.001 | 0.002 |" in table
    assert table.count("\n|") == 3  # heads, a line, one key


def test_compare_refuses_scores_of_different_protocols(folder, capsys):
    make_run("other", seed=0)
    assert main(["eval", "runs/other", "--protocol", "knn", "evaluator.k=3"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs/a", "runs/other"]) == 2
    said = capsys.readouterr().err
    assert "evaluator.k is 20 and 3" in said
    assert "vidssl eval runs/other --protocol knn evaluator.k=20" in said
    assert main(["eval", "runs/other", "--protocol", "knn", "data.test.num_videos=10"]) == 0
    assert main(["compare", "runs/a", "runs/other"]) == 2
    said = capsys.readouterr().err
    assert "videos.test.found is 12 and 10" in said
    assert re.search(r"videos\.test\.sha256 is [0-9a-f]{8} and [0-9a-f]{8}$", said, re.M)
    assert "vidssl eval runs/other --protocol knn data=runs/a" in said


def test_compare_takes_no_notice_of_batch_size(folder, capsys):
    make_run("batched", seed=0)
    assert main(["eval", "runs/batched", "--protocol", "knn", "batch_size=5"]) == 0
    assert main(["compare", "runs/a", "runs/batched"]) == 0


def test_csv_has_a_line_for_every_number(folder, capsys):
    assert main(["compare", "runs/a/scores/knn-step-000005.json", "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "protocol,run,step,network,label,setting,frames,measure,top1,low,high,top5,chance"
    )
    assert len(lines) == 1 + 2 * 5
    first = read_scores(Path("runs/a/scores/knn-step-000005.json")).scores["trained"][0]
    assert lines[1].startswith(f"knn,runs/a,5,trained,{first.label},,normal,top-1,{first.top1},")


def test_compare_counts_videos_that_only_one_gets_right(folder, capsys):
    assert main(["compare", "runs/a", "runs/b", "--markdown"]) == 0
    said = capsys.readouterr().out
    one, other = (read_scores(Path(f"runs/{run}/scores/knn-step-000005.json")) for run in "ab")
    pairs = zip(one.scores["trained"][0].predicted, other.scores["trained"][0].predicted, strict=True)
    truth = one.truth["digit"]
    right = [(a == number, b == number) for (a, b), number in zip(pairs, truth, strict=True)]
    only_one, only_other = right.count((True, False)), right.count((False, True))
    (line,) = re.findall(rf"\| digit \| {only_one} \| {only_other} \|.*", said)
    found = paired_difference(*zip(*right, strict=True))
    assert f"| {found.p:.3f} |" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "got none"),
        (("runs",), "a folder, but not that of a run"),
        (("nothing.json",), "nothing.json: No such file"),
        (("runs/a/checkpoints/step-000005.safetensors",), "not the folder of a run"),
    ],
)
def test_mistakes_of_compare_are_one_line(words, says, folder, capsys):
    assert main(["compare", *words]) == 2
    assert says in capsys.readouterr().err


def test_scores_of_an_earlier_version_are_refused(folder, capsys, tmp_path):
    (tmp_path / "old.json").write_text('{"scores": {}}')
    assert main(["compare", str(tmp_path / "old.json")]) == 2
    assert "make them again with 'vidssl eval'" in capsys.readouterr().err


def test_videos_that_could_not_be_read_are_told_of_again(folder, capsys):
    make_run("e", seed=4)
    assert main(["eval", "runs/e", "--protocol", "knn"]) == 0
    for path in Path("runs/e/features").iterdir():
        found = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        vectors = {name: part[:-1].clone() for name, part in found.items() if name != "numbers"}
        metadata["unreadable"] = json.dumps(["x.mp4: empty"])
        tensors = {**vectors, "numbers": found["numbers"][:-1].clone()}
        del metadata["digest"]
        metadata["digest"] = tensors_digest(tensors, metadata)
        save_file(tensors, path, metadata=metadata)
    capsys.readouterr()
    assert main(["eval", "runs/e", "--protocol", "knn"]) == 0
    said = capsys.readouterr().out
    assert "remove it to try 1 unreadable videos again" in said
    assert "test: 11 videos found of 12 listed\n  left out: x.mp4: empty" in said
