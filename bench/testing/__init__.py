"""Check that a method or an attack keeps its promises; third parties run the same on their own.

A plug-in passes when `check_attack(MyAttack())` or `check_method(MyMethod())` returns; under pytest
parametrise over `ATTACK_CHECKS` or `METHOD_CHECKS`, for one test per promise. Everything runs on
the embedded owner `mini`, on strangers trained from scratch like it, and on the embedded digits.
"""

from bench.testing.attacks import ATTACK_CHECKS as ATTACK_CHECKS
from bench.testing.attacks import (
    attack_as_control_ignores_the_victims_weights as attack_as_control_ignores_the_victims_weights,
)
from bench.testing.attacks import (
    attack_changes_weights_or_function as attack_changes_weights_or_function,
)
from bench.testing.attacks import attack_does_not_depend_on_order as attack_does_not_depend_on_order
from bench.testing.attacks import (
    attack_keeps_the_function_if_it_says_so as attack_keeps_the_function_if_it_says_so,
)
from bench.testing.attacks import (
    attack_leaves_its_input_untouched as attack_leaves_its_input_untouched,
)
from bench.testing.attacks import attack_needs_the_labels_it_says as attack_needs_the_labels_it_says
from bench.testing.attacks import (
    attack_repeats_under_equal_randomness as attack_repeats_under_equal_randomness,
)
from bench.testing.attacks import (
    attack_returns_a_distinct_object as attack_returns_a_distinct_object,
)
from bench.testing.attacks import attack_returns_finite_weights as attack_returns_finite_weights
from bench.testing.attacks import attack_survives_a_round_trip as attack_survives_a_round_trip
from bench.testing.attacks import (
    attack_twins_see_equal_batches_and_heads as attack_twins_see_equal_batches_and_heads,
)
from bench.testing.attacks import check_attack as check_attack
from bench.testing.comparing import _snapshot as _snapshot
from bench.testing.methods import METHOD_CHECKS as METHOD_CHECKS
from bench.testing.methods import check_method as check_method
from bench.testing.methods import (
    method_changes_weights_if_it_marks as method_changes_weights_if_it_marks,
)
from bench.testing.methods import method_counts_what_it_states as method_counts_what_it_states
from bench.testing.methods import method_does_not_depend_on_order as method_does_not_depend_on_order
from bench.testing.methods import method_forges_of_what_it_sees as method_forges_of_what_it_sees
from bench.testing.methods import (
    method_keeps_tensors_only_as_secret as method_keeps_tensors_only_as_secret,
)
from bench.testing.methods import method_keeps_to_its_access as method_keeps_to_its_access
from bench.testing.methods import (
    method_leaves_its_input_untouched as method_leaves_its_input_untouched,
)
from bench.testing.methods import (
    method_protects_alike_whatever_it_reads_with as method_protects_alike_whatever_it_reads_with,
)
from bench.testing.methods import method_recognises_its_own_model as method_recognises_its_own_model
from bench.testing.methods import (
    method_repeats_under_equal_randomness as method_repeats_under_equal_randomness,
)
from bench.testing.methods import method_returns_finite_values as method_returns_finite_values
from bench.testing.methods import (
    method_separates_it_from_trained_strangers as method_separates_it_from_trained_strangers,
)
from bench.testing.methods import method_survives_a_round_trip as method_survives_a_round_trip
from bench.testing.methods import (
    method_tunes_within_its_settings as method_tunes_within_its_settings,
)
from bench.testing.methods import (
    method_with_an_exact_null_has_fair_bits as method_with_an_exact_null_has_fair_bits,
)
from bench.testing.victims import CPU as CPU
from bench.testing.victims import STRANGERS as STRANGERS
from bench.testing.victims import _owner_for as _owner_for
from bench.testing.victims import _pools as _pools
from bench.testing.victims import _strangers_for as _strangers_for
from bench.testing.victims import _with_digits_head as _with_digits_head
from bench.testing.victims import context as context
from bench.testing.victims import owner as owner
from bench.testing.victims import stranger as stranger
