"""Pictures and text plots of runs and evaluations: what is averaged, and that everything a run may hold is drawn."""

import io
import json
import math
import sys
from pathlib import Path

import pytest
from tools import plot, series, terminal

PNG = b"\x89PNG\r\n\x1a\n"


def write(directory, rows, name="metrics.jsonl"):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(directory)


def run(num=3, first=2, seed=0.0):
    """Rows of a small run whose second phase begins behind step `first`."""
    return [{"step": s, "phase": 1 + (s > first), "reward": min(1.0, s / num + seed), "entropy": 0.5, "grad_norm": s,
             f"reward_by_len/{'0-80' if s <= first else '80-200'}": s / num, "completions/mean_length": 10 + s,
             "step_time": 30.0, "tokens_per_s": 1000.0, "timing_s/sample": 20.0, "timing_s/update": 10.0}
            for s in range(1, num + 1)]


def cell(accuracy, low=0.4, high=0.6, **more):
    return {"accuracy": accuracy, "low": low, "high": high, "questions": 10, **more}


def results(**parts):
    model = {"all": cell(0.5), "by_length": {"0-80": cell(0.5), "80-200": cell(0.25, 0.1, 0.5)}, "by_task": {},
             "by_source": {}, "average": None, **parts}
    return {"settings": {}, "models": [{"model": "assets/nano-sft", **model},
                                       {"model": "runs/x/rl/checkpoints/step_000030", **model}]}


def evaluated(directory, **parts) -> list:
    """These results, written and read."""
    return series.read_results(Path(write(directory, [results(**parts)], "results.json")) / "results.json")


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def pictures(directory) -> dict:
    """{name: (width, height)} of the PNGs in a directory."""
    found = {}
    for path in directory.glob("*.png"):
        content = path.read_bytes()
        assert content.startswith(PNG), path
        found[path.name] = tuple(int.from_bytes(content[place:place + 4], "big") for place in (16, 20))
    return found


ALL = {f"{name}.png" for name in ("dynamics", "length", "health", "time", "patterns")}


def test_the_pictures_of_a_run_that_broke_and_still_goes_on(tmp_path, matplotlib):
    """NaN, infinity, null, a text, a missing judge, retrospective examples, and half a last line."""
    rows = run()
    rows[1].update(entropy=math.nan, grad_norm=math.inf, reward=None, judge="x")
    rows[2].update({"reward_by_len/0-80": 0.25, "patterns/grounding": 2.0, "judge/error_rate": 0.5, "kl": 0.1})
    directory = write(tmp_path / "a", rows)
    with open(tmp_path / "a/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "rew')
    assert plot.main([directory, "--out", str(tmp_path / "out")]) == 0
    found = pictures(tmp_path / "out")
    assert set(found) == ALL
    assert all(1000 <= width <= 2000 and 400 <= height <= 3000 for width, height in found.values()), found


def test_several_runs_of_different_lengths_in_one_panel(tmp_path, capsys, matplotlib):
    runs = [write(tmp_path / name, rows) for name, rows in (
        ("a-0", run(3)), ("a-1", run(1)), ("b", [{"step": 1, "reward": 0.5}, {"step": 2, "reward": None}]))]
    assert plot.main([*runs, "--metric", "reward", "entropy", "--out", str(tmp_path / "ab.png")]) == 0
    assert set(pictures(tmp_path)) == {"ab.png"}
    assert plot.main([*runs, "--metric", "rewart"]) == 78 and "there are reward, entropy" in capsys.readouterr().err
    assert plot.main([*runs, "--out", str(tmp_path / "ab.png")]) == 78 and "directory" in capsys.readouterr().err


def test_the_pictures_of_a_demo_and_of_an_evaluation(tmp_path, matplotlib):
    write(tmp_path / "rl", run())
    write(tmp_path / "eval", [results(by_source={"frames": cell(0.5), "docmath": cell(0.25, 0.1, 0.4)},
                                      average=cell(0.375), all=cell(0.5, **{"pass@1": 0.5, "pass@4": 0.75}))],
          "results.json")
    assert plot.main([str(tmp_path)]) == plot.main([str(tmp_path / "eval")]) == 0
    assert set(pictures(tmp_path)) == {"curve.png"} and set(pictures(tmp_path / "eval")) == {"evaluation.png"}


def test_a_name_is_no_formula(tmp_path, matplotlib):
    runs = [write(tmp_path / name, run()) for name in ("$a^{$", "b")]
    assert plot.main([*runs, "--out", str(tmp_path / "out")]) == 0 and pictures(tmp_path / "out")


@pytest.fixture
def drawn(monkeypatch, matplotlib):
    """The axes that plot.picture would have saved with these arguments."""
    from matplotlib.figure import Figure
    def draw(*arguments):
        found = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: found.append(figure))
        plot.picture(Path("out/x.png"), *arguments)
        return found[0].axes
    return draw


def test_what_is_drawn_are_the_numbers_of_the_runs(tmp_path, monkeypatch, drawn):
    """The mean of two seeds and their band. Bars as high as the accuracies."""
    monkeypatch.chdir(tmp_path)
    group = [run(4, 4), run(2, 4, seed=0.25)]
    (axes,) = drawn([plot.Panel("reward", "", "reward", "share")], {"a": group}, [])
    assert list(axes.lines[0].get_ydata()) == [0.5, 0.75, 0.75, 1.0]
    assert axes.get_ylim() == (-0.03, pytest.approx(1.0375))
    (band,) = axes.collections
    assert (band.get_datalim(axes.transData).y0, band.get_datalim(axes.transData).y1) == (0.25, 1.0)
    minutes = [series.cumulated(rows) for rows in group]
    (axes,) = drawn([plot.Panel("reward", "", "reward", x="minutes")], {"a": minutes}, [])
    assert list(axes.lines[0].get_xdata()) == [0.5, 1.0, 1.5, 2.0]
    (axes,) = drawn(["by_length"], {}, evaluated(tmp_path))
    assert [bar.get_height() for bar in axes.patches] == [50, 25, 50, 25]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0-80", "80-200"]
    models = evaluated(tmp_path, all=cell(0.5, **{"pass@1": 0.5, "pass@2": 0.75}))
    (axes,) = drawn(["pass@k"], {}, models)
    assert [bar.get_height() for bar in axes.patches] == [50, 75, 50, 75]


def test_a_panel_without_a_metric_is_left_out():
    def names(**more):
        return {name: [panel.title for panel in panels] for name, panels in
                plot.panels_of({"a": [[{**row, **more} for row in run()]]}, [], []).items()}
    assert names()["dynamics"] == ["reward", "entropy", "response length"] and "patterns" not in names()
    assert names(kl=0.0)["dynamics"][2] == "KL to the start"
    assert names(**{"patterns/subgoal": 1})["patterns"] == ["subgoal"]
    assert names()["length"] == ["documents of 0-80 tokens", "documents of 80-200 tokens"]


def test_a_dashed_line_is_a_new_phase(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    (axes,) = drawn([plot.Panel("reward", "", "reward")], {"a": [run(4, 2)]}, [])
    assert [list(line.get_xdata()) for line in axes.lines][2:] == [[2.5, 2.5]]


def test_all_panels_show_all_steps_and_labels_do_not_overlap(tmp_path, monkeypatch, drawn):
    """Also of a metric that only some steps have, and of tiny numbers of tokens."""
    monkeypatch.chdir(tmp_path)
    rows = [{"step": step, "late": 1.0 if step > 20 else None, "tokens": 0.0025 / 5 * step, "x": 1.0}
            for step in range(1, 41)]
    late, early, tokens = drawn([plot.Panel("late", "", "late"), plot.Panel("x", "", "x"),
                                 plot.Panel("x", "", "x", x="tokens")], {"a": [rows]}, [])
    assert late.get_xlim() == early.get_xlim() == (0, 41)
    boxes = [label.get_window_extent() for label in tokens.get_xticklabels() if label.get_text()]
    assert len(boxes) > 3 and all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


# tools.plot of an SFT run: sparse series, log axes

def sft_run(num=200, every=25):
    rows = [{"step": s, "loss": 9 / s, "learning_rate": s / 20e3 if s <= 20 else (num - s) / num / 1e3,
             "grad_norm": 1.0, "step_time": 0.1, "tokens_per_s": 1e4, "elapsed": 0.1 * s} for s in range(1, num + 1)]
    for row in rows[every - 1::every]:
        row["eval/acc"] = row["step"] / num
    return rows


def test_sparse_series_are_not_smoothed_as_if_dense_and_have_markers(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    group = [sft_run()]
    assert series.by_step(group, "eval/acc", smooth=True) == {s: [s / 200] for s in range(25, 201, 25)}
    assert series.by_step(group, "learning_rate", smooth=True) == series.by_step(group, "learning_rate")
    often = [{"step": s, "x": s} for s in range(5, 1001, 5)]                    # 200 values among 1,000 steps: by 15
    rows = [{"step": s, **({"x": s} if s % 5 == 0 else {})} for s in range(1, 1001)]
    assert series.by_step([rows], "x", smooth=True) == series.by_step([often], "x", smooth=True) != series.by_step(
        [rows], "x")
    loss, accuracy, *_ = axes = drawn(plot.panels_of({"s": group}, [], [])["sft"], {"s": group}, [])
    assert [each.get_title() for each in axes] == ["loss", "accuracy on held-out documents",
                                                   "gradient before it is clipped", "learning rate", "time of a step",
                                                   "speed"]
    assert accuracy.lines[0].get_marker() == "." and list(accuracy.lines[0].get_ydata()) == [s / 8 for s in range(1, 9)]
    assert accuracy.get_ylim() == (-0.03, pytest.approx(1.04375, abs=0.02))
    assert loss.lines[0].get_marker() in ("", "None")


def test_which_pictures_a_run_gets():
    assert plot.panels_of({"s": [sft_run()]}, [], []).keys() == {"sft"}
    assert "sft" not in plot.panels_of({"a": [run()]}, [], []) and "dynamics" in plot.panels_of({"a": [run()]}, [], [])
    assert plot.panels_of({"x": [[{"step": 1, "y": 2.0}]]}, [], []).keys() == {"metrics"}


def test_a_log_axis_has_powers_and_names_have_no_formulas(tmp_path, monkeypatch, drawn):
    """Nothing raw like $\\mathdefault{10^{-3}}$ is shown, and a $ in a name is a $."""
    import matplotlib
    monkeypatch.chdir(tmp_path)
    (axes,) = drawn([plot.Panel("$a^{$", "", "loss")], {"$b^$": [sft_run()]}, [])
    axes.set_yscale("log")
    axes.figure.canvas.draw()
    assert matplotlib.rcParams["text.parse_math"] and axes.title.get_text() == r"\$a^{\$"
    shown = [axes.title._preprocess_math(text.get_text()) for text in (axes.title, *axes.figure.legends[0].get_texts())]
    assert shown == [("$a^{$", False), ("$b^$", False)]
    assert all(axes.title._preprocess_math(tick.get_text())[1] for tick in axes.get_yticklabels() if tick.get_text())


def test_a_metric_that_is_always_zero_has_no_negative_axis(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    rows = [{"step": s, "x": 0.0, "y": -1.0} for s in range(1, 9)]
    x, y = drawn([plot.Panel("x", "", "x"), plot.Panel("y", "", "y")], {"a": [rows]}, [])
    assert x.get_ylim() == (-0.03, 1.03) and y.get_ylim()[0] < -1.0


def test_lines_can_be_told_apart_in_greyscale():
    """CIE lightness of the colours: 29 of 100 for #004488, as every table of it says; no two alike."""
    def lightness(colour):
        channels = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055)**2.4 for c in channels]
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))
        return 116 * luminance**(1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance
    found = sorted(map(lightness, plot.COLOURS))
    assert lightness("#004488") == pytest.approx(29, abs=0.5) and lightness("#FFFFFF") == pytest.approx(100, abs=0.1)
    assert min(b - a for a, b in zip(found, found[1:])) > 7 and found[-1] < 88


def test_seeds_differ_in_a_number_at_the_end(tmp_path):
    def grouped(*names):
        return {name: [str(run.relative_to(tmp_path)) for run in some]
                for name, some in series.seeds([tmp_path / name for name in names]).items()}
    assert grouped("a-0", "a-1", "b-0", "b") == {"a-*": ["a-0", "a-1"], "b-0": ["b-0"], "b": ["b"]}
    assert grouped("demo-0/rl", "demo-1/rl") == {"demo-*/rl": ["demo-0/rl", "demo-1/rl"]}
    assert grouped("a", "a-0", "a-1") == {"a": ["a"], "a-*": ["a-0", "a-1"]}
    assert grouped("a", "a") == {"a": ["a"]}
    assert grouped("x/rl", "y/rl") == {"x/rl": ["x/rl"], "y/rl": ["y/rl"]}
    assert grouped("1.7B", "lr2") == {"1.7B": ["1.7B"], "lr2": ["lr2"]}


def test_averages_begin_anew_with_a_phase():
    """20 steps: averages over 2. Two runs: the averages of both."""
    rows = [{"step": s, "phase": 1 + (s > 10), "x": float(s)} for s in range(1, 21)]
    means = [value for (value,) in series.by_step([rows], "x", smooth=True).values()]
    assert means[:3] == [1.0, 1.5, 2.5] and means[9:12] == [9.5, 11.0, 11.5]
    both = series.by_step([rows, [{**row, "x": row["x"] + 4} for row in rows[:1]]], "x", smooth=True)
    assert (both[1], both[2]) == ([1.0, 5.0], [1.5])
    assert series.borders([rows]) == {11}
    broken = [{"step": s, "x": x} for s, x in enumerate((math.nan, 2, None, -math.inf, 10**400, "x", True))]
    assert series.by_step([broken], "x") == {1: [2.0]}


def test_cumulated_time_and_tokens():
    rows = series.cumulated([{"step": 1, "step_time": 30, "tokens_per_s": 2000}, {"step": 2},
                             {"step": 3, "step_time": math.nan}, {"step": 4, "step_time": 90, "tokens_per_s": 1000}])
    assert [row["minutes"] for row in rows] == [0.5, 0.5, 0.5, 2.0]
    assert [row["million tokens"] for row in rows] == [0.06, 0.06, 0.06, 0.15]


@pytest.fixture
def plotext(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return pytest.importorskip("plotext")


def numbers(out: str) -> dict[str, list[str]]:
    """{metric: its values} in the table under the panels."""
    lines = [line.split() for line in out.splitlines()]
    head = lines.index(["first", "last", "lowest", "highest"])
    return {line[0]: line[-4:] for line in lines[head + 1:]}


def test_a_run_in_the_terminal(tmp_path, capsys, plotext):
    """No line is wider than the terminal. A metric that never changes is only in the table."""
    rows = [{**row, "kl": 0.25, "judge/error_rate": math.inf if row["step"] == 2 else None} for row in run(200, 20)]
    assert plot.main([write(tmp_path, rows), "--text"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert numbers(out)["reward"] == ["0.005", "1", "0.005", "1"] and numbers(out)["kl"] == ["0.25"] * 4
    assert "judge/error_rate" not in out and {"reward_by_len/0-80", "reward_by_len/80-200"} <= set(numbers(out))
    titles = {line.strip() for line in out.splitlines()}
    assert {"reward", "reward_by_len/0-80"} <= titles and "kl" not in titles


def test_the_panel_of_a_metric_shows_its_values_and_phases(tmp_path, capsys, monkeypatch, plotext):
    """A rise over 8 steps. Step 3 is not finite, the second phase begins after step 5. stdout can only write ASCII."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    rows = [{"step": step, "phase": 1 + (step > 5), "x": math.nan if step == 3 else step / 8} for step in range(1, 9)]
    assert plot.main([write(tmp_path, rows), "--text", "--metric", "x"]) == 0
    out = written.getvalue().decode("ascii")
    marks, title, _, top, *_, bottom, _, ticks, _, _, _ = out.splitlines()
    assert marks.startswith("* ") and title.strip() == "x" and ticks.split()[0] == "1.0"
    assert top.startswith("1.0") and top.index("*") > 30 > bottom.index("*")
    assert bottom.index("*") < bottom.index(":") < top.index("*")


@pytest.mark.parametrize("num", [1, 3])
def test_short_runs_and_many_groups_in_the_terminal(tmp_path, capsys, plotext, num):
    """Each of 70 groups has a mark of its own while there are marks, and a line in the table."""
    runs = [write(tmp_path / f"run{n}x", [{**row, "reward": n / 70} for row in run(num)]) for n in range(70)]
    assert plot.main([*runs, "--text", "--metric", "reward"]) == 0
    out = capsys.readouterr().out
    assert len(set(terminal.MARKERS)) == len(terminal.MARKERS) > 30
    assert out.startswith("* run0x  o run1x  + run2x") and out.count("\nreward ") == 70
    assert plot.main([runs[0], "--text"]) == 0


def test_without_plotext_a_sentence_says_what_to_install(tmp_path, capsys, monkeypatch):
    for library in ("matplotlib", "plotext"):
        monkeypatch.setitem(sys.modules, library, None)
    assert plot.main([write(tmp_path, run())]) == 78
    assert capsys.readouterr().err.endswith('plotext is not installed: pip install ".[plots]"\n')


def test_without_matplotlib_it_is_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write(tmp_path, [results(all=cell(0.5, **{"pass@2": 0.75}))], "results.json")
    assert plot.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("matplotlib is not installed") and not list(tmp_path.glob("*.png"))
    assert [line.split()[-3:] for line in out.splitlines() if "0-80" in line] == [["50.0", "[40.0,", "60.0]"]] * 2
    assert out.splitlines()[-1].split()[:4:3] == ["rl", "pass@2"] and " 75.0 [" in out.splitlines()[-1]


def test_a_bar_is_one_line_whatever_its_name(tmp_path):
    models = evaluated(tmp_path, by_length={"a\n\x1b[2J": cell(0.5), "b": cell(1.0)})
    one, two = terminal.table(models[:1], 60).split("\n")
    assert one.split()[:2] == ["nano-sft", "a\\n\\x1b[2J"] and one.index("█") == two.index("█")


@pytest.mark.parametrize("content, told", [
    ("", "no step in it yet"),
    ('{"step": 1, "rew', "no step in it yet"), ('{"step": 1}\nx\n{"step": 2}\n', "jsonl:2: "),
    ('{"step": 1}\n', "no step has a number to show"),
    ("[1]\n", "this line is not a JSON object"), ('{"reward": 1}\n', '"step"'),
    ('{"step": 1, "reward": "x"}\n', "no step has a number to show"),
    ("\xff\n", "jsonl:1: "), ("[" * 9999, "step")])
def test_metrics_that_cannot_be_drawn_are_refused_in_a_sentence(tmp_path, capsys, content, told):
    (tmp_path / "metrics.jsonl").write_bytes(content.encode("latin-1"))
    assert plot.main([str(tmp_path)]) == plot.main([str(tmp_path), "--text"]) == 65
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"models": []}', '{"models": [{"model": "a"}]}',
                                     '{"models": [{"model": "a", "all": {}}]}', json.dumps(
    {"models": [{"model": "a", "all": cell(0.5), "by_length": {"0-80": cell("much")}}]}),
    json.dumps({"models": [{"model": "a", "all": cell(0.5), "by_length": {"0-80": cell(math.nan)}}]})])
def test_an_evaluation_that_is_none_is_refused_in_a_sentence(tmp_path, capsys, content):
    (tmp_path / "results.json").write_text(content)
    assert plot.main([str(tmp_path)]) == plot.main([str(tmp_path), "--text"]) == 65
    err = capsys.readouterr().err
    assert "results.json" in err and err.count("\n") == 2 and "Traceback" not in err


def test_a_directory_without_a_run_gets_one_sentence(tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 66 and "metrics.jsonl: No such file" in capsys.readouterr().err
    write(tmp_path / "rl", run())
    assert plot.main([str(tmp_path)]) == 66 and "eval/results.json: No such file" in capsys.readouterr().err


def test_labels():
    assert series.label(Path("runs/demo-0/rl/checkpoints/step_000030")) == "rl step 30"
    assert series.label(Path("assets/nano-base")) == "nano-base"


def test_no_two_of_many_lines_look_alike():
    assert len({(plot.look(place)["color"], str(plot.look(place)["linestyle"])) for place in range(35)}) == 35
