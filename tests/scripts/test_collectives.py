"""Collectives are counted in a program's text, with their bytes and groups."""

import importlib.util
import math

import command
import pytest


@pytest.fixture(scope="module")
def script():
    path = command.ROOT / "scripts" / "bench" / "collectives.py"
    spec = importlib.util.spec_from_file_location("collectives", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXT = """HloModule jit_step
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ag = f32[16,4]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[4]) while(%t), condition=%c, body=%body, config={"known_trip_count":{"n":"3"}}
  %ar = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), replica_groups=[1,8]<=[8], to_apply=%add
  %m = f32[100]{0} all-reduce(%a), replica_groups=mesh['x'=4,'y'=2] {'x'}, to_apply=%add
  %cp = u8[7]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %start = (f32[5]{0}, f32[20]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %rs = f32[3]{0} reduce-scatter(%a), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %mix = u8[80]{0} all-gather(%a), replica_groups=[1,8]<=[8], metadata={op_name="f/gather"}
  %add.1 = f32[8]{0} add(%a, %a)
}
"""


def test_what_is_counted(script):
    assert script.collectives(TEXT) == [
        ("all-gather", 256, 2, 3),
        ("all-reduce", 32 + 12, 8, 1),
        ("all-reduce", 400, 4, 1),
        ("collective-permute", 7, 2, 1),
        ("all-gather", 80, 4, 1),
        ("reduce-scatter", 12, 4, 1),
        (script.EXAMPLES, 80, 8, 1),
    ]
    rows = script.summed(script.collectives(TEXT))
    assert rows["all-reduce"] == {
        "count": 2,
        "bytes": 444,
        "sent": round(2 * 7 / 8 * 44 + 2 * 3 / 4 * 400),
    }
    assert rows["all-gather"]["count"] == 4
    assert rows["all-gather"]["sent"] == round(3 * 128 + 0.75 * 80)
    assert rows["reduce-scatter"]["sent"] == 36


def test_groups_written_in_parts_of_an_axis(script):
    line = "x = f32[2] all-reduce(a), replica_groups=mesh['x'=8,'y'=2] {'x':(2)4,'y'}"
    assert script.group_size(line) == 8
    turned = "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}"
    assert script.group_size(f"x = f32[8]{{0}} all-gather(p), channel_id=9, {turned}") == 4
    with pytest.raises(ValueError, match="no device groups"):
        script.group_size("x = f32[2] all-reduce(a)")


def test_the_estimate_is_its_formula(script):
    class Options:
        link, network, latency_us, compute_ms = 100.0, 10.0, 10.0, 50.0

    rows = script.estimate(Options, 0.875e9, 20, 8)
    assert [row["devices"] for row in rows] == [8, 16, 32, 64, 128, 256]
    wait = 20 * 10e-6 * math.log2(8)
    assert rows[0]["communication_ms"] == pytest.approx(1e3 * (0.875e9 / 100e9 + wait), abs=1e-3)
    moved, wait = 1e9 * 255 / 256 / 10e9, 20 * 10e-6 * 8
    last = rows[-1]
    mixed = script.estimate(Options, 0.875e9 + 7e6, 20, 8, examples=7e6)[-1]
    grown = mixed["communication_ms"] - last["communication_ms"]
    assert grown == pytest.approx(1e3 * 255e6 / 10e9, abs=1e-3)
    assert last["communication_ms"] == pytest.approx(1e3 * (moved + wait), abs=1e-3)
    assert last["efficiency_without_overlap"] == pytest.approx(
        0.05 / (0.05 + moved + wait), abs=1e-4
    )
    assert last["efficiency_with_overlap"] == pytest.approx(
        0.05 / (0.05 + moved - 0.05 + wait), abs=1e-4
    )
