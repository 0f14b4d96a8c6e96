"""The documentation is executed: its code runs, its commands parse, the names in it exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from elpo.algorithms.registry import ALGORITHMS
from elpo.cli import _parser
from elpo.commands.settings import OVERRIDE
from elpo.config import Config
from elpo.recipes import load_config
from elpo.tasks.ledger import LedgerConfig
from elpo.tasks.loading import BUILT_IN
from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LOGGING = [ROOT / "src/elpo" / name for name in (
    "training/rollout_metrics.py", "training/policy_update.py", "training/sft.py", "training/trainer.py",
    "evaluation/summary.py",
)]  # fmt: skip

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """(line the content starts at, content) of the fenced blocks in one of the languages."""
    found = [match for match in FENCE.finditer(text) if match[1] in languages]
    return [(text.count("\n", 0, match.start(2)) + 1, match[2]) for match in found]


def inline(page: Path) -> list[str]:
    """The `code` of a page outside its fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    saved: set[str] = set()
    for line, source in blocks(page.read_text(), "python"):
        if file := re.match(r"# (my_\w+)\.py\n", source):
            (tmp_path / f"{file[1]}.py").write_text(source)
            saved.add(file[1])
        else:
            exec(compile("\n" * (line - 1) + source, str(page), "exec", dont_inherit=True), namespace)
    for name in saved:
        del sys.modules[name]  # a saved plug-in that no later block has imported fails here


def test_plug_ins_of_the_guide_are_short_and_assert_something() -> None:
    sources = [source for _, source in blocks((ROOT / "docs/EXTENDING.md").read_text(), "python")]
    plug_ins = [source for source in sources if source.startswith("# my_")]
    assert len(plug_ins) == 2
    assert all(len(re.findall(r"^.*\S", source, re.MULTILINE)) <= 40 for source in plug_ins)
    assert sum("assert " in source for source in sources) >= 5


def commands() -> list[tuple[str, str]]:
    found = []
    for page, name in zip(PAGES, IDS, strict=True):
        lines = [line for _, block in blocks(page.read_text(), "sh") for line in block.splitlines()]
        for text in [*lines, *inline(page)]:
            command = re.sub(r"^(\w+=\S+ )+|^\$ ", "", text.partition("  #")[0].strip())
            if re.match(r"(elpo|make) \S", command):
                found.append((name, command))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets)
        return
    if len(arguments) == 1:  # a command is only named, or `elpo --help`
        with pytest.raises(SystemExit, match=r"^0$"):
            _parser().parse_args([*arguments, "--help"])
        return
    args, rest = _parser().parse_known_args(arguments)
    assert not [word for word in rest if word.startswith("-")]
    if arguments[0] == "train":
        items = [*args.items, *rest]
        recipes = [item for item in items if not OVERRIDE.match(item)]
        assert len(recipes) <= 1
        recipe = next((Path(item) for item in recipes if item.startswith("recipes/")), None)
        load_config(recipe, [item for item in items if OVERRIDE.match(item)])


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_settings_exist(page: Path) -> None:
    """`section.key` and `section.key=value`; the sections of an algorithm may go without their prefix."""
    everything = Config().model_dump()
    everything["task"]["options"] = LedgerConfig().model_dump()
    for code in inline(page):
        key, equals, value = code.partition("=")
        section = key.partition(".")[0]
        if section in everything["algorithm"] and section != "name":
            key = f"algorithm.{key}"
        elif section not in everything:
            continue
        if re.fullmatch(r"\w+(\.\w+)+", key):
            found: Any = everything
            for part in key.split("."):
                found = found[part]
            if equals:
                load_config(None, [f"{key}={value}"])


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_recipes_load(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for number, (_, source) in enumerate(blocks(page.read_text(), "yaml")):
        recipe = tmp_path / "recipes" / f"{number}.yaml"
        recipe.write_text(source)
        load_config(recipe)


def resolve(name: str) -> object:
    """The object a dotted name starting with `elpo.` means; raises where there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields and not hasattr(found, part) else getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_exist(page: Path) -> None:
    for code in inline(page):
        if re.fullmatch(r"elpo(\.\w+)+", code):
            resolve(code)
        elif match := re.fullmatch(r"(tests/[\w/]+\.py)(?:::(\w+))?", code):
            defined = {node.name for node in ast.walk(ast.parse((ROOT / match[1]).read_text()))
                       if isinstance(node, ast.FunctionDef)}  # fmt: skip
            assert match[2] is None or match[2] in defined, code
        elif re.fullmatch(r"(src|docs|recipes|tests|benchmarks)/[\w/.-]*", code):
            assert (ROOT / code).exists(), code
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_paper_map_names_code_and_tests() -> None:
    """`test_names_exist` checks them; this, that every equation's row has both."""
    page = (ROOT / "docs/PAPER.md").read_text()
    for number in (1, *range(3, 13)):
        rows = [line for line in page.splitlines() if re.match(rf"\| Eq\. {number}\b", line)]
        assert len(rows) == 1, number
        assert "`elpo." in rows[0] and "`tests/" in rows[0] and "::test_" in rows[0], number


def test_settings_in_tables_are_the_defaults() -> None:
    """Rows `| ... | `section.key` | value |` of the paper map say what a run without a recipe uses."""
    page = (ROOT / "docs/PAPER.md").read_text()
    rows = re.findall(r"^\|[^|]*\|[^|]*\| `([a-z_]+(?:\.\w+)+)` \| ([^|]+?) \|", page, re.MULTILINE)
    assert len(rows) >= 15
    for key, value in rows:
        assert load_config(None, [f"{key}={value}"]) == Config(), key


def test_the_table_of_tasks_has_every_task_and_its_default_source() -> None:
    page = (ROOT / "docs/TASKS.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", page, re.MULTILINE)
    sources = {name: re.findall(r"`([^`]+)`", source)[:1] for name, source in rows if name in BUILT_IN}
    for name, target in BUILT_IN.items():
        options = resolve(target.replace(":", ".")).Options  # type: ignore[attr-defined]
        path = options.model_fields.get("path")
        default = [] if path is None or path.is_required() else [path.default]
        assert [word for word in sources[name] if "/" in word] == default, name


def test_every_row_of_the_table_of_algorithms_is_on_a_page() -> None:
    facts = "".join(
        line
        for page in (ROOT / "docs/algorithms").glob("*.md")
        for line in page.read_text().splitlines()
        if line.startswith(("| `algorithm.name` |", "| ablations |"))
    )
    assert [name for name in ALGORITHMS if f"`{name}`" not in facts] == []


METRIC = re.compile(r"[a-z]+/[a-z_]+")


def logged(path: Path) -> set[str]:
    """Metric names in a file: strings like `group/name`, and the other keys of dicts that have such a key."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value):
            names.add(node.value)
        if isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if any(METRIC.fullmatch(str(key)) for key in keys):
                names |= {str(key) for key in keys}
    return names


def test_the_glossary_has_every_metric_and_no_other() -> None:
    page = (ROOT / "docs/METRICS.md").read_text()
    rows = re.findall(r"^\| ((?:`[a-z_/]+`(?:, )?)+) \|", page, re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    phases = {"sft", "rl", "evaluation"}
    assert sorted(explained) == sorted(set(explained))
    assert set(explained) - phases == set().union(*map(logged, LOGGING))


def test_what_is_shown_and_plotted_is_recorded() -> None:
    recorded = set().union(*map(logged, LOGGING))
    for name in ("training/progress.py", "viz/plots.py"):
        assert logged(ROOT / "src/elpo" / name) <= recorded, name
    for script in (ROOT / "src/elpo/viz/page").glob("*.js"):
        shown = set(re.findall(rf'"({METRIC.pattern})"', script.read_text())) - {"data/index"}
        assert shown <= recorded, script.name


def test_layers_are_those_the_imports_are_held_to() -> None:
    ((_, block),) = blocks((ROOT / "docs/ARCHITECTURE.md").read_text(), "layers")
    written = [{f"elpo.{unit}" for unit in line.split(", ")} for line in block.splitlines()]
    assert written == [set(layer) for layer in reversed(LAYERS)]
