"""The command line: what each command is called with, and what it says when something is wrong."""

import errno
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from toy_parts import RECIPE, set_up

from vidssl.build.registry import KINDS
from vidssl.cli import main as cli
from vidssl.cli.train import LISTED
from vidssl.config.files import spec_roots


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_up(monkeypatch, tmp_path)


def standing_in(monkeypatch: pytest.MonkeyPatch, module: str, function: str) -> list[tuple[object, ...]]:
    """Replaces a function that the command calls by one that notes its arguments and returns 7."""
    calls: list[tuple[object, ...]] = []
    fake = ModuleType(module)
    setattr(fake, function, lambda *given, **options: calls.append(given) or 7)
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


def test_train_gets_the_recipe_with_its_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = standing_in(monkeypatch, "vidssl.train.run", "run_recipe")
    Path("x.yaml").write_text(RECIPE)
    assert cli.main(["train", "x.yaml", "optim.lr=1e-2", "run.out=some where"]) == 7
    ((recipe,),) = calls
    assert recipe.optim.node.mapping()["lr"].value == 1e-2
    assert recipe.run.out == "some where"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--protocol", "knn"], (None, ["knn"], [])),
        (["runs/a", "--protocol", "knn", "--protocol", "linear"], ("runs/a", ["knn", "linear"], [])),
        (["--protocol", "knn", "runs/a", "batch_size=3"], ("runs/a", ["knn"], ["batch_size=3"])),
        (
            ["batch_size=3", "--protocol", "knn", "data={a: 1}"],
            (None, ["knn"], ["batch_size=3", "data={a: 1}"]),
        ),
        (["runs/lr=3", "--protocol", "knn"], ("runs/lr=3", ["knn"], [])),
    ],
)
def test_eval_takes_target_protocols_and_overrides_in_any_order(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: tuple[object, ...]
) -> None:
    calls = standing_in(monkeypatch, "vidssl.evaluate.evaluate", "evaluate_run")
    assert cli.main(["eval", *words]) == 7
    assert calls == [expected]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "the following arguments are required: COMMAND (see 'vidssl --help')"),
        (["trian"], "no command 'trian'. Did you mean 'train'?"),
        (["--fast"], "the following arguments are required: COMMAND (see 'vidssl --help')"),
        (["train"], "train takes one recipe, got none (vidssl train recipes/bevt.yaml)"),
        (["train", "a", "b"], "train takes one recipe, got a b (vidssl train recipes/bevt.yaml)"),
        (
            ["train", "mine", "masker={type:", "toy}"],
            "train takes one recipe, got mine toy} (put overrides that hold spaces in quotes)",
        ),
        (
            ["train", "mine", "optim.l-r=1"],
            "override 'optim.l-r=1': write key=value with dots between keys, like optim.lr=1e-3",
        ),
        (["train", "recipes/mien.yaml"], "recipes/mien.yaml: no such recipe. Did you mean 'mine'?"),
        (["train", "x.yaml", "--fast"], "unknown option --fast (see 'vidssl --help')"),
        (
            ["train", "mine", "optim.lrr=1"],
            "override 'optim.lrr=1': optim.lrr: unknown key. Did you mean 'lr'?",
        ),
        (
            ["train", "mine"],
            "recipes/mine.yaml:8: data.video.source: a: no such folder",
        ),
        (["train", "recipes"], "recipes: a folder, not a recipe: name a file"),
        (["train", "own"], "own: no such recipe. Did you mean 'own.yaml'?"),
        (
            ["train", "own.yaml"],
            "own.yaml: a protocol, not a recipe. Score a run under it: vidssl eval RUN --protocol own.yaml",
        ),
        (
            ["train", "knn"],
            "knn: no such recipe, but a protocol. Score a run under it: vidssl eval RUN --protocol knn",
        ),
        (
            ["train", "trained"],
            "trained: no such recipe, but a tokenizer. A recipe names it: tokenizer=trained",
        ),
        (["train", "mine", "lr=1"], "override 'lr=1': lr: unknown key. Did you mean 'optim.lr'?"),
        (
            ["train", "mine", "epochs=1"],
            "override 'epochs=1': epochs: unknown key. Did you mean 'schedule.epochs'?",
        ),
        (
            ["train", "mine", "batch_size=1"],
            "override 'batch_size=1': batch_size: unknown key. Did you mean 'data.video.batch_size' or "
            "'data.image.batch_size'?",
        ),
        (
            ["train", "mine", "masker={type:toy}"],
            "override 'masker={type:toy}': masker: 'type:toy': a blank is missing behind the colon: write "
            "'type: toy'",
        ),
        (
            ["train", "mine", "run.device=gpu"],
            "override 'run.device=gpu': run.device: expected 'auto' or 'cpu' or 'cuda', got 'gpu'. Did you "
            "mean 'cuda'?",
        ),
        (
            ["train", "mine", "backbone.type=own.py"],
            "override 'backbone.type=own.py': backbone.type: a class of a file is written FILE.py:CLASS, "
            "such as own.py:Mine",
        ),
        # what costs nothing to look at comes before the data, whose folder is not there either
        (
            ["train", "mine", "run.device=cuda"],
            "run.device is cuda, and torch sees no CUDA device; use run.device=cpu or auto",
        ),
        (
            ["train", "mine", "run.trackers=[wandb]"],
            "run.trackers names 'wandb', whose package is not installed: pip install 'vidssl[wandb]', or "
            "leave it out (metrics.jsonl is written in any case)",
        ),
        (
            ["train", "mine", "backbone.init=timm:vit_smal_patch16_224"],
            "override 'backbone.init=timm:vit_smal_patch16_224': backbone.init: timm:vit_smal_patch16_224: "
            "timm has no such network. Did you mean 'timm:vit_small_patch16_224'?",
        ),
        (
            ["train", "mine", "backbone.init=runs/old"],
            "override 'backbone.init=runs/old': backbone.init: runs/old: no such run or file. Did you mean "
            "'runs/older'? Runs: runs/older",
        ),
        *(
            (
                ["train", "mine", f"name={name}"],
                f"name: '{name}' leads out of its folder; it is a name below run.out: run.out=FOLDER puts it "
                "elsewhere",
            )
            for name in ("../up", "..", "/tmp/up", "a/../..")
        ),
        (
            ["train", "mine", 'name="a\\x1b[2J"'],
            "name: 'a\\x1b[2J' holds control characters, which terminals act on: leave them out",
        ),
        (
            ["eval", "recipes/mine.yaml", "--protocol", "knn"],
            "recipes/mine.yaml: a recipe, not a run: it has no weights. Train it: vidssl train "
            "recipes/mine.yaml; or score its network before training: vidssl eval "
            "untrained:recipes/mine.yaml --protocol knn. Runs: runs/older",
        ),
        (
            ["eval", "oldr", "--protocol", "knn"],
            "oldr: no such run or file. Did you mean 'runs/older'? Runs: runs/older",
        ),
        (["compare", "svt_s"], "svt_s: no such run or file. Runs: runs/older"),
        (["train", "--resume", "svt_s"], "svt_s: no such run or file. Runs: runs/older"),
        (
            ["eval", "--protocol", "knn,linear"],
            "--protocol knn,linear: repeat the option for each protocol: --protocol knn --protocol linear",
        ),
        (["eval", "runs/a"], "the following arguments are required: --protocol (see 'vidssl eval --help')"),
        (["eval", "a", "b", "--protocol", "knn"], "eval takes one run, checkpoint or network, got a b"),
        (["check", "bevt", "seed=1"], "check takes files as they are, without overrides; got seed=1"),
        (["list", "backbone"], "no kind of component 'backbone'. Did you mean 'backbones'?"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(RECIPE)
    Path("own.yaml").write_text("name: own\nevaluator: {type: knn}\n")
    Path("own.py").write_text("class Mine: ...\n")
    Path("runs/older").mkdir(parents=True)
    Path("runs/older/environment.json").write_text('{"started_unix": 1.0}')
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vidssl: ")
    assert said.err.count("\n") == 1
    assert said.err == f"vidssl: {expected}\n"


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def refuse(*given: object) -> int:
        raise error

    fake = ModuleType("vidssl.tools.watch")
    fake.watch_run = lambda *given, once: refuse()
    monkeypatch.setitem(sys.modules, "vidssl.tools.watch", fake)


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "can be written"),
        (errno.EMFILE, "ulimit"),
        (errno.EIO, "its disk fails"),
    ],
)
def test_what_the_machine_refuses_is_one_line_with_a_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, way: str
) -> None:
    raising(monkeypatch, OSError(number, os.strerror(number), "some/file"))
    assert cli.main(["watch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vidssl: some/file: {os.strerror(number)}: ")
    assert (said.count("\n"), way in said) == (1, True)
    raising(monkeypatch, OSError(errno.EBADF, "a defect of ours may look so"))
    with pytest.raises(OSError, match="defect"):
        cli.main(["watch"])


def test_a_package_that_others_may_not_read_says_who_can_mend_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, PermissionError(errno.EACCES, "Permission denied", cli.__file__))
    assert cli.main(["watch"]) == 2
    assert re.search(r"for its owner alone, .*: chmod -R a\+rX .*vidssl\n$", capsys.readouterr().err)


def too_much_of_torch() -> None:
    torch.empty(1 << 55)


def too_much_of_numpy() -> None:
    np.empty(1 << 55)


def too_much_of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")


@pytest.mark.parametrize("too_much", [too_much_of_torch, too_much_of_numpy, too_much_of_a_gpu])
def test_memory_that_does_not_suffice_is_one_line_with_a_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, too_much: Callable[[], None]
) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as error:
        too_much()
    raising(monkeypatch, error.value)
    assert cli.main(["watch"]) == 2
    said = capsys.readouterr().err
    owner = "the GPU" if too_much is too_much_of_a_gpu else "this machine"
    assert re.fullmatch(rf"vidssl: the memory of {owner} does not suffice \([\d.]+ \w+ more .*\n", said)
    assert "lower batch_size" in said
    raising(monkeypatch, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["watch"])


def test_output_that_is_not_read_to_its_end_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, BrokenPipeError())
    assert cli.main(["watch"]) == cli.UNREAD
    assert capsys.readouterr().err == ""


def test_a_working_folder_that_was_removed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["list"]) == 2
    assert "the working folder was removed" in capsys.readouterr().err
    os.chdir(tmp_path)


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **options: object) -> int:
        raise KeyboardInterrupt

    fake = ModuleType("vidssl.train.run")
    fake.run_recipe = interrupted
    monkeypatch.setitem(sys.modules, "vidssl.train.run", fake)
    Path("x.yaml").write_text(RECIPE)
    assert cli.main(["train", "x.yaml"]) == 130


def test_check_prints_a_line_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text(RECIPE)
    Path("bad.yaml").write_text(RECIPE.replace("name: toy", "nmae: toy"))
    assert cli.main(["check", "good.yaml", "tokenizers/trained.yaml", "evaluation/knn.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["good.yaml: ok", "tokenizers/trained.yaml: ok"]
    assert lines[2].endswith("evaluation/knn.yaml: ok")
    assert cli.main(["check", "bad.yaml", "good.yaml"]) == 2
    said = capsys.readouterr()
    assert said.out == "good.yaml: ok\n"
    assert said.err == "vidssl: bad.yaml:1: nmae: unknown key. Did you mean 'name'?\n"


@pytest.mark.slow
def test_check_knows_a_protocol_by_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("name: own\nevaluator: {type: knn, kk: 5}\n")
    assert cli.main(["check", "own.yaml"]) == 2
    assert "own.yaml:2: evaluator.kk: unknown key" in capsys.readouterr().err
    Path("own.yaml").write_text("name: a/b\nevaluator: {type: knn}\n")
    assert cli.main(["check", "own.yaml"]) == 2
    assert "'a/b' leads out of its folder; it is a name of a file" in capsys.readouterr().err


def test_check_without_a_name_takes_every_file_it_finds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the working folder and the package, here with two files: test_structure.py builds all of them."""
    package = Path("package/evaluation")
    package.mkdir(parents=True)
    for name in ("linear.yaml", "published.yaml"):
        shutil.copy(spec_roots()[1] / "evaluation" / name, package)
    for module in ("files", "published"):
        monkeypatch.setattr(
            f"vidssl.config.{module}.spec_roots", lambda: (Path.cwd(), package.parent.resolve())
        )
    (Path("recipes") / "deep").mkdir(parents=True)
    (Path("recipes") / "deep" / "mine.yaml").write_text(RECIPE)
    Path("tokenizers/untrained.yaml").write_text("type: toy\n")
    assert cli.main(["check"]) == 2
    said = capsys.readouterr()
    assert "recipes/deep/mine.yaml: ok\n" in said.out
    assert "tokenizers/trained.yaml: ok\n" in said.out
    assert "evaluation/linear.yaml: ok\n" in said.out
    assert "evaluation/published.yaml: ok\n" in said.out
    assert said.out.count(": ok\n") == 4
    assert said.err.startswith("vidssl: tokenizers/untrained.yaml:1: missing 'weights'")


def test_list_shows_names_sentences_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "maskers"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A toy masker." in said
    assert "mode: tube ('tube' or 'cube')" in said
    assert "min_cells: 1" in said
    assert cli.main(["list", "views"]) == 0
    assert "name (text)" in capsys.readouterr().out
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(kind in said for kind in LISTED)


def test_both_spellings_of_the_list_of_runs_show_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/older").mkdir(parents=True)
    Path("runs/older/environment.json").write_text('{"started_unix": 1.0}')
    said = []
    for words in (["runs"], ["list", "runs"]):
        assert cli.main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "older" in said[0]


def test_every_kind_of_component_can_be_listed() -> None:
    assert tuple(KINDS) == LISTED


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind].table], ids=lambda word: word
)
def test_every_component_has_a_sentence_and_typed_keys(kind: str, name: str) -> None:
    from vidssl.build.registry import summary
    from vidssl.config.schema import keys_of, parts_of

    constructor = KINDS[kind].table[name]
    assert summary(constructor).endswith((".", ")")), f"{name}: its docstring starts with no sentence"
    assert set(parts_of(constructor)) <= set(KINDS[kind].parts)
    keys_of(constructor)


def test_commands_import_only_what_they_need() -> None:
    """Help answers at once; checking, listing and comparing load no library of networks or of probes."""
    recipe = Path(__file__).parents[2] / "recipes" / "bevt.yaml"
    code = (
        "import sys\nfrom vidssl.cli.main import main\n"
        "try:\n    main(['train', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
        f"assert main(['check', {str(recipe)!r}]) == 0\n"
        "assert main(['list']) == 0\n"
        "assert 'scipy' not in sys.modules\n"
        "assert main(['compare', '--published', '--paper', 'svt']) == 0\n"
        "heavy = {'torchvision', 'timm', 'pytorchvideo', 'faiss', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RECIPE" in done.stdout


# command -> what its options are keywords of, whose defaults hold where they are left out
KEYWORDS_OF: dict[str, tuple[str, ...]] = {
    "train": ("vidssl.cli.train._train",),
    "bench": ("vidssl.tools.bench.bench",),
    "selftest": ("vidssl.tools.selftest.selftest_resume", "vidssl.tools.selftest_gpu.selftest_gpu"),
    "replay": ("vidssl.tools.replay.replay",),
    "eval": ("vidssl.evaluate.evaluate.evaluate_run", "vidssl.tools.tokenizer_scores.score_tokenizers"),
    "compare": ("vidssl.compare.runs.compare",),
    "show": (
        "vidssl.pictures.show.show",
        "vidssl.pictures.show.show_part",
        "vidssl.tools.show_charts.show_chart",
        "vidssl.pictures.charts.show_confusion",
        "vidssl.pictures.clips.show_clips",
    ),
    "watch": ("vidssl.tools.watch.watch_run",),
    "tokenize": ("vidssl.tools.tokenize.tokenize.tokenize",),
    "convert": (),
    "check": (),
    "list": (),
    "report": ("vidssl.tools.report.write_report",),
    "runs": ("vidssl.compare.runs.runs_table",),
    "grid": ("vidssl.cli.train._grid", "vidssl.tools.grid.Execution", "vidssl.tools.grid.run_grid"),
    "features": ("vidssl.cli.use._features", "vidssl.use.features.features"),
    "predict": ("vidssl.cli.use._predict", "vidssl.use.predict.predict_videos"),
    "export": ("vidssl.use.export.export",),
    "push": ("vidssl.use.hub.push",),
    "mteb": ("vidssl.use.mveb.evaluate_mteb",),
    "init": ("vidssl.cli.data._init", "vidssl.tools.init.init.write_recipe"),
    "data list": ("vidssl.cli.data._list", "vidssl.tools.collection.make_list.make_list"),
    "data split": (
        "vidssl.cli.data._split",
        "vidssl.tools.collection.split.Rule",
        "vidssl.tools.collection.split.split_list",
    ),
    "data check": ("vidssl.tools.data.check.check_data", "vidssl.data.decode.content.Limits"),
    "data prepare": (
        "vidssl.cli.data._prepare",
        "vidssl.tools.data.prepare.prepare_data",
        "vidssl.tools.data.encode.H264",
        "vidssl.tools.data.encode.Jpegs",
    ),
    "data shard": ("vidssl.tools.data.shard.shard_data",),
    "data index": ("vidssl.tools.data.index.index_data",),
}


def test_every_option_is_a_keyword_of_what_its_command_runs() -> None:
    """And help names the default that holds."""
    top = cli.parsers()[1].choices
    (below,) = (each for each in top["data"]._actions if each.dest == "operands" or each.choices)
    assert isinstance(below.choices, dict)
    found = {**top, **{f"data {name}": parser for name, parser in below.choices.items()}}
    found.pop("data")
    assert set(found) == set(KEYWORDS_OF)
    defaults_seen = 0
    for command, parser in found.items():
        keywords: dict[str, inspect.Parameter] = {}
        for address in KEYWORDS_OF[command]:
            module, _, name = address.rpartition(".")
            keywords |= inspect.signature(getattr(import_module(module), name)).parameters
        for option in parser._actions[2:]:  # behind --help and the operands
            assert option.dest in keywords, f"{command} {option.option_strings}"
            stated = re.search(r"default: ([\d.]+)$", option.help or "")
            if stated:
                defaults_seen += 1
                scale = 10**6 if option.dest == "shard_bytes" else 1
                assert float(stated[1]) * scale == keywords[option.dest].default, option.option_strings
    assert defaults_seen == 21
