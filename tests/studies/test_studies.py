"""What a study consists of, what its runs say, and that trainings side by side end, fail and go on."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats

from elpo.cli import main
from elpo.recipes import ConfigError, load_config
from elpo.studies.results import RunResult, interval, paired, read_results, unequal_budgets
from elpo.studies.running import StudyFailed, run_study
from elpo.studies.study import Study, load_study
from elpo.training.progress import SilentProgress
from elpo.training.run_folder import RunFolder
from elpo.viz.study import report

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def write(folder: Path, text: str, name: str = "study.yaml") -> Path:
    folder.joinpath("recipe.yaml").write_text(
        "run: {device: cpu}\nmodel: {path: m}\n"
        "rl: {num_steps: 4, problems_per_step: 2, problems_per_minibatch: 2}\n"
    )
    path = folder / name
    path.write_text(text)
    return path


def finished_run(folder: Path, curve: list[float], rollouts: int = 32, steps: int = 4) -> None:
    """A run folder that says it was trained, measured before RL and after every second step."""
    run = RunFolder(folder)
    for step in range(steps + 1):
        if step:
            run.append_metrics(
                "rl",
                step,
                {"rollouts/total": rollouts, "tokens/sampled": 10, "tool/calls": 2, "time/total": 1.5},
            )
        if step % 2 == 0:
            run.append_metrics("evaluation", step, {"success/heldout": curve[step // 2]})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    text = "recipe: recipe.yaml\nseeds: [0, 1, 2]\nalgorithms: [elpo, grpo]\n"
    return load_study(write(tmp_path, text), {"runs": str(tmp_path / "runs")})


# what a study is


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_the_project_are_valid(path: Path) -> None:
    study = load_study(path, {})
    assert len(study.seeds) >= 3 and len(study.variants) >= 3
    budgets = {
        config.rl.max_rollouts
        or config.rl.num_steps * config.rl.problems_per_step * config.algorithm.num_rollouts
        for config in study.configs.values()
    }
    assert len(budgets) == 1


def test_variants_share_a_cold_start_unless_they_change_it(tmp_path: Path) -> None:
    text = """
        recipe: recipe.yaml
        seeds: [3, 5]
        overrides: [sft.num_steps=2]
        variants:
          wide: [algorithm.clip.high=0.5]
          narrow: [algorithm.clip.high=0.1]
          long: [sft.batch_size=8]
    """
    study = load_study(write(tmp_path, text), {}, ["rl.num_steps=1"])
    starts = {run.folder.name: run.overrides for run in study.cold_starts()}
    assert set(starts) == {f"{name}-{seed}" for name in ("cold", "long-cold") for seed in (3, 5)}
    assert "sft.batch_size=8" in starts["long-cold-5"] and "sft.batch_size=8" not in starts["cold-5"]
    assert load_config(study.recipe, starts["cold-5"]).rl.num_steps == 0
    models = {run.folder: run.folder / "model" for run in study.cold_starts()}
    for run in study.trainings(models):
        config = load_config(study.recipe, run.overrides)
        variant, seed = run.folder.name.rsplit("-", 1)
        start = "long-cold" if variant == "long" else "cold"
        assert config.model.path == str(study.folder(start, int(seed)) / "model")
        assert (config.run.seed, config.sft.num_steps, config.rl.num_steps) == (int(seed), 0, 1)
        assert config.algorithm.clip.high == {"wide": 0.5, "narrow": 0.1, "long": 0.315}[variant]
    without = load_study(write(tmp_path, text.replace("num_steps=2", "num_steps=0")), {})
    assert without.start_of("wide") is None and not without.cold_starts()


def test_a_recipe_is_a_study_once_its_variants_are_named(tmp_path: Path) -> None:
    recipe = write(tmp_path, "") and tmp_path / "recipe.yaml"
    study = load_study(recipe, {"algorithms": ["elpo", "grpo"], "seeds": [7]})
    assert study.recipe == recipe and list(study.variants) == ["elpo", "grpo"]
    assert [run.folder.name for run in study.trainings({})] == ["elpo-7", "grpo-7"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: recipe.yaml\n", "compares nothing"),
        ("recipe: recipe.yaml\nalgorithms: [elpo, grppo]\n", "'grppo'.*did you mean 'grpo'"),
        ("recipe: recipe.yaml\nvariants: {a: [rl.num_stepz=3]}\n", "variant 'a'.*num_stepz"),
        ("recipe: recipe.yaml\nalgorithms: [elpo]\nseeds: [1, 1]\n", "different numbers"),
        ("recipe: recipe.yaml\nalgorithms: [elpo]\nseeds: []\n", "different numbers"),
        ("recipe: recipe.yaml\nvariants: {a/b: [rl.num_steps=3]}\n", "'a/b' names folders"),
        ("recipe: recipe.yaml\nvariants: {cold: [rl.num_steps=3]}\n", "'cold' names folders"),
        ("recipe: recipe.yaml\nalgorithms: [elpo]\ntarget: 2\n", "target"),
        ("recipe: recipe.yaml\nalgoritms: [elpo]\n", "algoritms"),
        ("recipe: other.yaml\nalgorithms: [elpo]\n", "other.yaml"),
        ("recipe: [", r"study\.yaml:1:10: .*flow node"),
        ("recipe: recipe.yaml\nseeds: [0]\nseeds: [1]", r"study\.yaml:3:1: .*seeds"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(write(tmp_path, text), {})
    with pytest.raises(ConfigError, match=r"no file .*nothing\.yaml"):
        load_study(tmp_path / "nothing.yaml", {})


# what the runs say


def test_numbers_of_finished_runs(study: Study) -> None:
    finished_run(study.folder("elpo", 0), [0.1, 0.6, 0.5])
    finished_run(study.folder("grpo", 0), [0.1, 0.2, 0.3])
    finished_run(study.folder("grpo", 1), [0.1, 0.2, 0.3], steps=3)  # still running
    elpo, grpo = read_results(study)
    assert elpo == RunResult("elpo", 0, ((0, 0.1), (64, 0.6), (128, 0.5)), 128, 40, 8, 6.0)
    assert (elpo.before, elpo.after, elpo.best, elpo.mean) == (0.1, 0.5, 0.6, pytest.approx(0.55))
    assert (elpo.rollouts_to(0.5), elpo.rollouts_to(0.1), elpo.rollouts_to(0.7)) == (64, 0, None)
    assert (grpo.variant, grpo.seed) == ("grpo", 0)


def test_a_run_whose_rollouts_are_used_up_is_finished(tmp_path: Path) -> None:
    text = "recipe: recipe.yaml\nseeds: [0]\nalgorithms: [dapo]\noverrides: [rl.max_rollouts=100]\n"
    study = load_study(write(tmp_path, text), {"runs": str(tmp_path / "runs")})
    finished_run(study.folder("dapo", 0), [0.1, 0.2], steps=2)  # 64 spent: another 32 can be paid for
    assert not read_results(study)
    RunFolder(study.folder("dapo", 0)).truncate_metrics()
    finished_run(study.folder("dapo", 0), [0.1, 0.2], rollouts=48, steps=2)
    (result,) = read_results(study)
    assert result.curve == ((0, 0.1), (96, 0.2))


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.2, 0.5, 0.6, 0.1, 0.9]])
def test_the_interval_is_scipys(values: list[float]) -> None:
    mean, half = interval(values)
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, loc=statistics.fmean(values), scale=scipy.stats.sem(values)
    )
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert math.isnan(interval([0.3])[1])


def test_the_report_pairs_by_seed_and_warns_of_unequal_budgets(study: Study) -> None:
    for seed, success in itertools.product(range(2), (0.2, 0.4)):
        finished_run(
            study.folder("elpo" if success == 0.4 else "grpo", seed), [0.1, 0.1, success + seed / 10]
        )
    finished_run(study.folder("elpo", 2), [0.0, 0.0, 1.0])
    results = read_results(study)
    assert paired(results, "grpo", "elpo", "after") == pytest.approx([-0.2, -0.2])  # seed 2 has no partner
    text = report(study, results, {"command": "elpo compare"})
    assert "| elpo | 3 of 3 |" in text and "| grpo | 2 of 3 |" in text
    assert "| grpo | 2 | -0.200 ± 0.000 |" in text
    assert not unequal_budgets(results) and "no fair comparison" not in text
    finished_run(study.folder("grpo", 2), [0.0, 0.0, 0.0], rollouts=64)
    results = read_results(study)
    assert unequal_budgets(results) == {"elpo": {128}, "grpo": {128, 256}}
    assert "no fair comparison" in report(study, results, {})


def test_a_study_without_a_finished_run_has_a_report_all_the_same(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study.runs.parent / "study.yaml"
    assert main(["compare", str(path), f"--runs={study.runs}", "--report-only"]) == 0
    assert "| elpo | 0 of 3 |" in capsys.readouterr().out
    assert (study.runs / "study.png").stat().st_size > 1000


# running


def test_a_failed_training_is_named_and_stops_no_other(study: Study) -> None:
    """The recipe names a model that does not exist, so that every training ends at once."""
    study = replace(study, seeds=(2,))
    with pytest.raises(StudyFailed, match="2 of 2 trainings failed") as failure:
        run_study(study, 2, SilentProgress())
    for variant in ("elpo", "grpo"):
        log = study.folder(variant, 2).with_suffix(".log")
        assert str(log) in str(failure.value)
        assert "error:" in log.read_text()


@pytest.mark.slow
def test_a_study_runs_and_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "run: {device: cpu}\n"
        "model:\n"
        "  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}\n"
        "task: {name: ledger, options: {min_lines: 4, max_lines: 4}}\n"
        "rollout: {num_slots: 32, max_tokens: 512, max_turn_tokens: 24}\n"
        "sft: {num_steps: 3, num_demonstrations: 50, batch_size: 4}\n"
        "rl: {num_steps: 2, problems_per_step: 2, problems_per_minibatch: 1}\n"
        "evaluation: {every: 1, num_problems: 4, samples_per_problem: 1}\n"
    )
    command = ["compare", str(recipe), "--algorithms", "elpo", "grpo", "--runs", str(tmp_path / "runs")]
    assert main([*command, "--seeds", "0"]) == 0
    assert "| elpo | 1 of 1 |" in capsys.readouterr().out
    before = (tmp_path / "runs" / "elpo-0" / "metrics.jsonl").read_bytes()
    assert main([*command, "--seeds", "0", "1"]) == 0
    text = capsys.readouterr().out
    assert "| elpo | 2 of 2 |" in text and "| grpo | 2 of 2 |" in text and "no fair" not in text
    assert (tmp_path / "runs" / "elpo-0" / "metrics.jsonl").read_bytes() == before
    starts = [
        RunFolder(tmp_path / "runs" / f"{name}-0").read_metrics("evaluation")[0] for name in ("elpo", "grpo")
    ]
    assert starts[0]["success/heldout"] == starts[1]["success/heldout"]
