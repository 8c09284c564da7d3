"""`lower-model plan` prints the plan that the engine would make, as a table, a file that the engine takes, and a picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from fxhlo.runtime.core.errors import FxhloError, UnsupportedError
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.steps.options import limits_of
from fxhlo.runtime.vllm.steps.planning.engine import check_settings, closed_set
from fxhlo.runtime.vllm.steps.planning.lengths import LengthsError
from fxhlo.runtime.vllm.steps.planning.plan import PlanError, read_plan
from fxhlo.tools.console import UsageError
from fxhlo.tools.plan.command import plan_model, planned
from fxhlo.tools.plan.picture import page, svg
from fxhlo.tools.plan.planned import Planned
from fxhlo.tools.plan.show import text

CPU = Target.parse("cpu")
OPTIONS = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "max_model_len": 128,
    "dtype": "float32",
    "block_size": None,
}


@pytest.fixture(scope="module")
def made(folder: Path) -> Planned:
    return planned(str(folder / "config.json"), OPTIONS, CPU, None, None)


def test_it_is_the_engines_plan(made: Planned, folder: Path) -> None:
    given = {name: value for name, value in OPTIONS.items() if value is not None}
    config = engine_config(str(folder), **given)  # type: ignore[arg-type]
    assert made.plan.limits == limits_of(config)
    assert made.plan.buckets == closed_set(config, limits_of(config), CPU)


def test_the_table_has_each_program_and_what_it_is_compared_with(made: Planned) -> None:
    said = text(made)
    for bucket in made.plan.buckets:
        assert f"│ {bucket['tokens']:>6,} │ {bucket['requests']:>8,} │" in said
    assert f"Sizes that double would be {len(made.usual)} programs" in said
    assert f"each of the {made.proof.steps:,} steps" in said
    assert made.plan.stretch <= made.usual_stretch


def test_the_picture_has_a_rectangle_for_each_program(made: Planned) -> None:
    drawn = ElementTree.fromstring(svg(made))
    titles = [one.text or "" for one in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(title.split(":")[0] for title in titles) == sorted(map(str, made.plan.buckets))
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == len(made.load)
    whole = page(made)
    assert whole.count("<tr>") == len(made.plan.buckets) + 1 and "<svg" in whole


def test_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("prompt,output\n20,10\n40,5\n")
    plan_model(str(folder), OPTIONS, CPU, str(lengths), ("3",), tmp_path / "plan.json", as_json=True)
    stored = json.loads(capsys.readouterr().out)
    assert stored == json.loads((tmp_path / "plan.json").read_text())
    assert len(stored["programs"]) <= 3 and stored["lengths"] == str(lengths) and stored["doubled"]["programs"] == 5
    given = {name: value for name, value in OPTIONS.items() if value is not None}
    limits = limits_of(engine_config(str(folder), **given))  # type: ignore[arg-type]
    assert [dict(bucket.sizes) for bucket in read_plan(tmp_path / "plan.json", limits).buckets] == stored["programs"]


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"plan": "plan.json"}, PlanError, "tokens is 32 here and 64 in the plan"),
        ({"plan": "none.json"}, PlanError, "No such file"),
        ({"lengths": "none.csv"}, LengthsError, "No such file"),
        ({"budget": "much"}, FxhloError, "not understood"),
        ({"budget": "10KB"}, FxhloError, "less than one program"),
        ({"plans": "plan.json"}, UnsupportedError, "did you mean plan"),
    ],
    ids=["for other limits", "no plan", "no lengths", "no budget", "too little", "no option"],
)
def test_an_engine_refuses_them_before_it_reads_weights(
    settings: dict[str, str], kind: type[FxhloError], said: str, made: Planned, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(made.plan.to_json()))
    given = {name: str(tmp_path / value) if "." in value else value for name, value in settings.items()}
    with pytest.raises(kind, match=said):
        check_settings(
            engine_config(
                str(folder),
                max_num_seqs=8,
                max_num_batched_tokens=32,
                max_model_len=128,
                additional_config={"fxhlo": given},
            ),
            CPU,
        )


def test_what_it_cannot_write_or_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.json, \.svg, \.html"):
        plan_model(str(folder), OPTIONS, CPU, None, (), tmp_path / "plan.png", as_json=False)
    with pytest.raises(UsageError, match=r"does not take these options: .*max_model_len"):
        plan_model(str(folder), {**OPTIONS, "max_model_len": 10**6}, CPU, None, (), None, as_json=False)
    with pytest.raises(UsageError, match="--budget: the budget 'much'"):
        plan_model(str(folder), OPTIONS, CPU, None, ("much",), None, as_json=False)
    exported = tmp_path / "x.pt2"
    exported.write_bytes(b"")
    with pytest.raises(UsageError, match="has no scheduler"):
        planned(str(exported), OPTIONS, CPU, None, None)
