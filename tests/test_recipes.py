"""The recipes: every command in them is one that the scripts understand, and the one for a CPU runs."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from recipes import ablations

import eval as eval_script
import train_rl
import train_sft
from nanoqwenlong.ops import flags

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_sft.py": train_sft, "train_rl.py": train_rl, "eval.py": eval_script}
STUB = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
if pathlib.Path(sys.argv[0]).name in ("scontrol", "srun"):
    words = ["head-node"] if words[:1] == ["show"] else words
    print(*words[:1])
if "--models" in words:
    print("model-a model-b")
if "recipes.real" in words and "--minutes" in words:
    print("1.5")
if "--equal-tokens" in words:
    name = words[words.index("--equal-tokens") + 1]
    print("" if (pathlib.Path(words[2]) / name).exists() else "10")
with open({log!r}, "a") as log:
    log.write(json.dumps([pathlib.Path(sys.argv[0]).name, *words]) + "\\n")
if "--name" in words:
    name, runs = words[words.index("--name") + 1], pathlib.Path(words[words.index("--runs-dir") + 1])
    checkpoint = runs / name / "checkpoints" / "step_000007"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "state.json").write_text(json.dumps({{"seconds": 90.0, "step": 7}}, indent=1))
    (runs / name / "exit.json").write_text(json.dumps({{"code": {code}, "reason": ""}}, indent=2))
"""


def commands(tmp_path: Path, recipe: str, *words: str, code: int = 0, **variables
             ) -> tuple[subprocess.CompletedProcess, list]:
    """Run a copy of a recipe with stand-ins for python, srun and scontrol: how it ended, and what it called."""
    (tmp_path / "recipes").mkdir()
    copy, log = tmp_path / "recipes" / recipe, tmp_path / "log"
    for name in (recipe, "runs.bash"):
        (tmp_path / "recipes" / name).write_bytes((ROOT / "recipes" / name).read_bytes())
    for name in ("python", "srun", "scontrol"):
        (tmp_path / name).write_text(STUB.format(python=sys.executable, log=str(log), code=code))
        (tmp_path / name).chmod(0o755)
    for name in ("sft.jsonl", "train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("{}\n" * 200)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"),
                   "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_NNODES": "4",
                   "SLURM_JOB_ID": "17", "MODEL": "m", "SFT": "sft.jsonl", "TRAIN": "train.jsonl", "TEST": "test.jsonl",
                   **variables}
    done = subprocess.run(["bash", str(copy), *words], env=environment, capture_output=True, text=True, timeout=60)
    return done, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("recipe, ranks, variables", [
    ("cpu.sh", 0, {}), ("cpu.sh", 2, {"RANKS": "2"}), ("one_gpu.sh", 0, {}),
    ("one_gpu.sh", 0, {"OFFLOAD": "1"}), ("eight_gpus.sh", 8, {}), ("slurm_multinode.sbatch", 8, {}),
    ("eight_gpus.sh", 8, {"MODEL": "", "PRESET": "qwen2.5-7b", "KV_BLOCKS": "99"})])
def test_every_command_of_a_recipe_has_flags_that_exist(tmp_path, recipe, ranks, variables):
    done, calls = commands(tmp_path, recipe, **variables)
    assert done.returncode == 0, done.stderr
    found = []
    for words in calls:
        place = next((i for i, word in enumerate(words) if word in SCRIPTS), None)
        if place is not None:
            module = SCRIPTS[words[place]]
            cfg = flags.parse(module.Config, words[place + 1:], getattr(module, "PRESETS", {}))
            found.append((words[place], cfg))
            launched = [word for word in words[:place] if word.startswith("--nproc_per_node")]
            alone = not ranks or recipe == "cpu.sh" and words[place] == "eval.py"
            assert launched == ([] if alone else [f"--nproc_per_node={ranks}"]), words
    assert [name for name, _ in found][-3:] == (["train_rl.py"] if "slurm" in recipe else [
        "train_sft.py", "train_rl.py", "eval.py"] if recipe == "cpu.sh" else ["eval.py", "train_rl.py", "eval.py"])
    rl = next(cfg for name, cfg in found if name == "train_rl.py")
    if recipe != "cpu.sh":
        assert rl.preset == variables.get("PRESET", {
            "one_gpu.sh": "qwen2.5-1.5b", "eight_gpus.sh": "r1-distill-qwen-14b",
            "slurm_multinode.sbatch": "r1-distill-qwen-32b"}[recipe])
        assert (rl.kv_blocks == 99) == ("KV_BLOCKS" in variables)
        assert rl.learning_rate == 2e-6 and rl.phase_lengths == (20000, 60000)
        assert all(getattr(cfg, "offload", False) == ("slurm" in recipe or "OFFLOAD" in variables)
                   for name, cfg in found if name != "eval.py")
        assert found[0][1].model == ("models/Qwen2.5-7B-Instruct" if variables.get("MODEL") == "" else "m")
        assert all(cfg.preset == rl.preset for _, cfg in found)
        assert rl.device == "cuda" and rl.checkpointing
    if recipe in ("one_gpu.sh", "eight_gpus.sh"):
        sft = next(cfg for name, cfg in found if name == "train_sft.py")
        assert (sft.steps, sft.batch_size, sft.learning_rate) == (5, 128, 5e-6)             # 3 epochs of 200 rows


@pytest.mark.parametrize("recipe, scripts", [
    ("judge.sh", ["sft", "sft", "rl", "rl", "eval", "eval"]), ("mixed.sh", ["sft", "rl", "rl", "eval"])])
def test_every_command_of_a_small_experiment_has_flags_that_exist(tmp_path, recipe, scripts):
    """Two RL runs that differ in one setting; tools that there are."""
    done, calls = commands(tmp_path, recipe)
    assert done.returncode == 0, done.stderr
    found = [(SCRIPTS[words[1]], words[2:]) for words in calls if words[1] in SCRIPTS]
    parsed = [flags.parse(module.Config, words) for module, words in found]
    assert [module.__name__.removeprefix("train_") for module, _ in found] == scripts
    one, other = (dataclasses.asdict(cfg) for (module, _), cfg in zip(found, parsed) if module is train_rl)
    differing = {name for name in one if one[name] != other[name]}
    assert differing == {"judge.sh": {"name", "judge"}, "mixed.sh": {"name", "advantages"}}[recipe]
    tools = [words[words.index("-m") + 1] for words in calls if "-m" in words]
    assert tools[-1] == "tools.plot" and all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in tools)


def test_the_ablations_differ_in_what_they_are_about(tmp_path):
    """Both seeds of each run; beside a run its twin, which differs in nothing else; every model evaluated."""
    done, calls = commands(tmp_path, "ablations.sh", SEEDS="3 4")
    assert done.returncode == 0, done.stderr
    runs, evaluations = {}, []
    for words in calls:
        if words[1] == "eval.py":
            evaluations.append(flags.parse(eval_script.Config, words[2:]))
        elif words[1] in SCRIPTS:
            cfg = flags.parse(SCRIPTS[words[1]].Config, words[2:])
            runs[cfg.name] = dataclasses.asdict(cfg)
    kinds = Counter(name.rpartition("-")[0] for name in runs)
    studied = {kind for study in ablations.STUDIES.values() for kind, _ in study.values()}
    assert {kind for kind, count in kinds.items() if count == 2} == studied | {"facts"} and kinds["judge_model"] == 1
    for seed in (3, 4):
        for one, other, differing in (("rl_base", "no_retro", {"retro_fraction"}), ("rule", "hybrid", {"judge"}),
                                      ("grpo", "tmn", {"advantages"}), ("rl_base", "rl_short", {"model"}),
                                      ("rl_short", "refills", {"max_refills"}),
                                      ("rl_base", "single", {"phase_lengths", "lengths", "phase_steps", "keep"}),
                                      ("short", "long", {"data"})):
            a, b = runs[f"{one}-{seed}"], runs[f"{other}-{seed}"]
            assert {name for name in a if a[name] != b[name]} == differing | {"name"}
    assert len(evaluations) == 16 and {cfg.model for cfg in evaluations} == {("model-a", "model-b")}
    assert Counter(bool(cfg.judge) for cfg in evaluations) == {False: 14, True: 2}


def test_the_real_experiment_differs_in_what_it_is_about(tmp_path):
    """Both seeds of the main run and of SFT instead, the first seed of the other controls, every model evaluated."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/control.jsonl").write_text("{}\n")
    parts = ("nq_one", "nq_three", "nq_long", "xquad_one", "xquad_three")
    for part in parts:
        (tmp_path / f"data/held_{part}.jsonl").write_text("{}\n" * 9)
    done, calls = commands(tmp_path, "real.sh", "owner/name", str(tmp_path / "data"), SEEDS="3 4",
                           QUESTIONS="1 2 3 4 50")
    assert done.returncode == 0, done.stderr
    held = [tmp_path / f"runs/real/held/held_{part}.jsonl" for part in parts]
    assert [len(path.read_text().splitlines()) for path in held] == [1, 2, 3, 4, 9]
    runs, evaluated = {}, {}
    for words in calls:
        if words[1] == "eval.py":
            cfg = flags.parse(eval_script.Config, words[2:])
            (evaluated[Path(cfg.out).name],) = cfg.model
            assert (cfg.temperature, list(cfg.data)) == (0, [f"runs/real/held/{path.name}" for path in held])
        elif words[1] in SCRIPTS:
            cfg = flags.parse(SCRIPTS[words[1]].Config, words[2:])
            assert f"-{cfg.seed}" == cfg.name[-2:]
            runs[cfg.name] = dataclasses.asdict(cfg)
    kinds = ("warm", "rl", "sft", "no_retro", "single", "worked")
    assert runs.keys() == {f"{kind}-{seed}" for kind in kinds for seed in (3, 4) if seed == 3 or kind in kinds[:3]}
    for one, other, differing in (
            ("rl-3", "no_retro-3", {"retro_fraction"}), ("rl-3", "rl-4", {"model", "seed"}),
            ("rl-3", "single-3", {"phase_lengths", "lengths", "phase_steps", "steps"}),
            ("warm-3", "sft-3", {"model", "steps", "minutes"}), ("sft-3", "worked-3", {"data"})):
        a, b = runs[one], runs[other]
        assert {name for name in a if a[name] != b[name]} == differing | {"name"}, (one, other)
    assert runs["sft-3"]["minutes"] == 1.5 and runs["rl-3"]["phase_lengths"] == (200, 520)
    assert runs["rl-3"]["learning_rate"] <= runs["sft-3"]["learning_rate"] < 1e-3     # the default is the toy's
    assert evaluated.pop("base") == runs["warm-3"]["model"] == "owner/name"
    assert {name: model.removeprefix("runs/real/") for name, model in evaluated.items()} == {
        **{name: f"{name}/checkpoints/step_000007" for name in runs},
        **{f"phase_one-{seed}": f"rl-{seed}/checkpoints/step_000026" for seed in (3, 4)}}


@pytest.mark.parametrize("variables, files, ranks", [
    ({"LONGBENCH": "lb", "FRAMES": "f 1.jsonl", "DOCMATH": "d.json", "RANKS": "8"}, [
        *(f"lb/{name}.jsonl" for name in ("2wikimqa", "hotpotqa", "musique", "narrativeqa", "qasper")), "f 1.jsonl",
        "d.json"], 8),
    ({"DOCMATH": "d.json", "JUDGE": "http://x/v1", "JUDGE_MODEL": "j", "SAMPLES": "4"}, ["d.json"], 0)])
def test_the_benchmarks_are_asked_for_at_the_papers_settings(tmp_path, variables, files, ranks):
    done, ((_, *words),) = commands(tmp_path, "benchmarks.sh", "m 1", "m2", **variables)
    assert done.returncode == 0, done.stderr
    launched, argv = words[:words.index("eval.py")], words[words.index("eval.py") + 1:]
    cfg = flags.parse(eval_script.Config, argv, eval_script.PRESETS)
    assert (cfg.model, list(cfg.data), cfg.device) == (("m 1", "m2"), files, "cuda")
    assert (cfg.temperature, cfg.top_p, cfg.max_prompt_tokens, cfg.max_new_tokens) == (0.7, 0.95, 120000, 10000)
    assert (cfg.judge, cfg.samples) == (variables.get("JUDGE", ""), int(variables.get("SAMPLES", 1)))
    assert launched[-1:] == [f"--nproc_per_node={ranks}"] * bool(ranks)
    blocks = -(-(cfg.max_prompt_tokens + cfg.max_new_tokens) // 16)
    assert blocks <= cfg.kv_blocks                                             # the longest answer there may be


@pytest.mark.parametrize("models, variables, said", [
    ([], {"DOCMATH": "d.json"}, "usage"), (["m"], {}, "name at least one of LONGBENCH")])
def test_benchmarks_without_a_model_or_a_file_are_refused(tmp_path, models, variables, said):
    done, calls = commands(tmp_path, "benchmarks.sh", *models, **variables)
    assert done.returncode == 78 and said in done.stderr and calls == []


@pytest.mark.parametrize("code, restarts, again, status", [(75, "0", True, 0), (75, "99", False, 1), (0, "0", False, 0),
                                                           (70, "0", False, 1)])
def test_a_slurm_job_goes_back_into_the_queue_when_it_was_stopped(tmp_path, code, restarts, again, status):
    done, calls = commands(tmp_path, "slurm_multinode.sbatch", code=code, SLURM_RESTART_COUNT=restarts)
    assert (["scontrol", "requeue", "17"] in calls, done.returncode) == (again, status), done.stderr


@pytest.mark.full
def test_the_recipe_for_a_cpu_runs_in_two_processes_and_goes_on():
    """Twice: the second time there is nothing left to do but to evaluate."""
    flags = {"SFT_FLAGS": "--toy-examples 8 --steps 3 --batch-size 4 --eval-every 0", "RANKS": "2",
             "RL_FLAGS": "--toy-examples 6 --phase-steps 1 1 --prompts-per-step 3 --group-size 2 --max-new-tokens 6",
             "EVAL_FLAGS": "--toy-examples 4 --max-new-tokens 6", "NAME": "test-recipe", "PYTHON": sys.executable}
    runs = ROOT / "runs" / "test-recipe"
    subprocess.run(["rm", "-rf", str(runs)], check=True)
    outputs = []
    try:
        for _ in range(2):
            done = subprocess.run(["bash", "recipes/cpu.sh"], cwd=ROOT, env={**os.environ, **flags}, timeout=300,
                                  capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
    finally:
        subprocess.run(["rm", "-rf", str(runs)], check=True)
    assert "saved" in outputs[0] and outputs[1].count("is complete") == 2
    tables = [[line for line in output.splitlines() if line.startswith("|")] for output in outputs]
    assert tables[0] == tables[1] and len(tables[1]) == 10        # accuracy of two models, what became of answers


# The first hour: usage, and a demo that resumes

@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.sh")))
def test_a_recipe_explains_itself_if_it_is_called_wrongly(tmp_path, recipe):
    """With --help, and without what it needs. It prints its own header and starts nothing."""
    needs = {"one_gpu.sh": ["SFT", "TRAIN", "TEST"], "eight_gpus.sh": ["SFT", "TRAIN", "TEST"], "benchmarks.sh": []}
    for place, (words, without) in enumerate([(["--help"], {}), *(([], {name: ""}) for name in needs.get(recipe, []))]):
        (tmp_path / str(place)).mkdir()
        done, calls = commands(tmp_path / str(place), recipe, *words, **without)
        assert done.returncode == 78 and calls == [] and done.stdout == ""
        assert done.stderr.startswith("usage:\n") and f"bash recipes/{recipe}" in done.stderr


def test_a_slurm_job_without_data_explains_itself(tmp_path):
    done, calls = commands(tmp_path, "slurm_multinode.sbatch", TRAIN="")
    assert done.returncode == 78 and calls == [] and "sbatch --export=ALL,TRAIN=train.jsonl" in done.stderr


def test_the_demo_resumes_and_says_how_to_start_anew(tmp_path):
    """A new one starts without a word, one that was stopped resumes with the same commands, a finished one shows its
    table and starts nothing."""
    first, calls = commands(tmp_path, "demo.sh")
    assert first.returncode == 0, first.stderr
    assert "anew" not in first.stdout
    runs, fresh = tmp_path / "runs/demo-0", "To start anew: rm -r runs/demo-0"
    assert runs.is_dir() and [words[1] for words in calls] == ["train_sft.py", "train_rl.py", "train_sft.py", "eval.py"]
    control = flags.parse(train_sft.Config, calls[2][2:])
    assert control.minutes == 1.5                              # what RL took, over all its starts
    shutil.rmtree(tmp_path / "recipes"), (tmp_path / "log").unlink()
    again, repeated = commands(tmp_path, "demo.sh")
    assert again.stdout.startswith(f"resuming runs/demo-0. {fresh}\n") and repeated == calls
    (runs / "eval").mkdir()
    (runs / "eval/table.md").write_text("| the table |\n")
    shutil.rmtree(tmp_path / "recipes"), (tmp_path / "log").unlink()
    done, none = commands(tmp_path, "demo.sh")
    assert done.returncode == 0 and none == [] and done.stdout == f"| the table |\nruns/demo-0 is complete. {fresh}\n"


def test_a_demo_that_is_stopped_says_how_to_resume_it(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.sh").write_bytes((ROOT / "recipes/demo.sh").read_bytes())
    done = subprocess.run(["bash", "recipes/demo.sh"], cwd=tmp_path, env={**os.environ, "PYTHON": "false"},
                          capture_output=True, text=True)
    assert done.returncode != 0 and "stopped. The same command resumes it" in done.stdout
