"""How the bench reads what libtpu writes: schedules with loops, modules with loops and conditions."""

from fxhlo.tools.bench.tpu_kernels.compiler import pallas_cycles, xla_cycles

SCHEDULE = """
LB: loop body
     0   :  { %7 = vsyncpa 0 }
   0x1 LB: > { %s1 = sadd.s32 1 /* iteration index, stage = 1 */ }
   0x2 LB: >> { %v1 = vld }
   0x3   :  { %v2 = vld }
   0x4   : >> { %p1 = scmp.ge.s32.totalorder (%p9), %s2, 5 /* loop exit test */ }
   0x5   : > { %v3 = vst }
   0x6 LB: >> { %v4 = vld }
   0x7   : > { %p2 = scmp.ge.s32.totalorder %s1, 10 /* loop exit test */ }
   0x8   :  { %v5 = vst }
"""


def test_loops_of_a_schedule_count_as_often_as_they_turn():
    """A grid of 3: its own three lines, a loop of three lines five times, and one line of a loop without a count, 7 times."""
    assert pallas_cycles(SCHEDULE, steps=7, blocks=3) == 2 + 3 * (3 + 3 * 5 + 1 * 7)


MOVED = """
     0   :  { %7 = vsyncpa 0 }
   0x1 LB: > { %s9_s1 = sadd.s32 1, %s5_s1  ;;  %s5_s1 = sphi %s4_s1, %s9_s1 /* phi copy */ }
   0x2 LB: >> { %v1 = vld  ;;  %s6_s2 = sphi %s3_s2, %s8_s2 /* phi copy */ }
   0x3   : >> { %s8_s2 = sadd.s32 (%p7), 1, %s6_s2 }
   0x4   : >> { %p1 = scmp.ge.s32.totalorder %s8_s2, 4 /* loop exit test */ }
   0x5   : >> { %p2 = scmp.ge.s32.totalorder (%p1), %s9_s1, 8 /* loop exit test */ }
   0x6   : > { %v2 = vst }
"""


def test_an_exit_test_in_a_loop_within_its_own_is_of_the_loop_whose_counter_it_compares():
    assert pallas_cycles(MOVED, steps=1, blocks=1) == 1 + 8 * (2 + 4 * 4)


MODULE = """HloModule m

%body (p: f32[2]) -> f32[2] {
  ROOT %a = f32[2] add(%p, %p), backend_config={"estimated_cycles":"10"}
}

%condition (p: f32[2]) -> pred[] {
  ROOT %c = pred[] compare(%p), backend_config={"estimated_cycles":"1"}
}

%cheap (p: f32[2]) -> f32[2] {
  ROOT %d = f32[2] copy(%p), backend_config={"estimated_cycles":"2"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %w = f32[2] while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %s = f32[2] sort(%w), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %r = f32[2] conditional(%s), branch_computations={%body, %cheap}
}
"""


def test_a_module_takes_its_dearest_branch_or_its_cheapest():
    assert xla_cycles(MODULE, asked=True) == 4 * 11 + 10
    assert xla_cycles(MODULE, asked=False) == 4 * 11 + 2


NESTED = """HloModule m

%inner (p: f32[2]) -> f32[2] {
  ROOT %a = f32[2] add(%p, %p), backend_config={"estimated_cycles":"10"}
}

%more (p: f32[2]) -> pred[] {
  ROOT %c = pred[] compare(%p), backend_config={"estimated_cycles":"1"}
}

%outer (p: f32[2]) -> f32[2] {
  %b = f32[2] add(%p, %p), backend_config={"estimated_cycles":"100"}
  ROOT %w = f32[2] while(%b), condition=%more, body=%inner
}

ENTRY %main (x: f32[2]) -> f32[2] {
  ROOT %w = f32[2] while(%x), condition=%more, body=%outer
}
"""


def test_loops_without_a_known_count_take_those_of_their_depth():
    assert xla_cycles(NESTED, asked=True, steps=(3, 5)) == 3 * (1 + 100 + 5 * (1 + 10))
    assert xla_cycles(NESTED, asked=True, steps=2) == 2 * (1 + 100 + 2 * (1 + 10))
