from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError
from llmcls.data.label_mismatch import require_no_separator, require_truth


def test_one_wrong_cell_in_a_0_1_column_is_left_to_the_message_that_names_its_row() -> None:
    require_truth(["", "0", "1", "x"], "train.csv")
    with pytest.raises(UserError, match=r"such as '2' are names, not 0 or 1; set model\.problem_type=single"):
        require_truth(["0", "1", "2", "3", "4"], "train.csv")


def test_commas_in_names_of_classes_are_allowed_unless_the_names_occur_in_other_cells() -> None:
    require_no_separator(["Health, Beauty", "Toys, Games"], "train.csv")
    with pytest.raises(UserError, match="name several labels"):
        require_no_separator(["Health, Beauty", "Health", "Beauty"], "train.csv")
