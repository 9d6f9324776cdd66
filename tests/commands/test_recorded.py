"""What a record says of an adapter's data is compared with the data that are there."""

import pytest

from point_peft_hf.commands.recorded import check_names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mug", "pan", "jug"], "classes of the data new are not the 3 of the adapter: they come in another order"),
        (["jug", "mug", "pot"], "the adapter does not know pot and the data lack pan"),
        (["jug", "mug"], "The 2 classes .* the data lack pan"),
        (["jug", "mug", "pan", *"abcdefg"], "the adapter does not know a, b, c, d, e and 2 others"),
    ],
)
def test_other_classes_are_refused(names, message):
    known = ["jug", "mug", "pan"]
    check_names(known, tuple(known), "new")
    with pytest.raises(ValueError, match=message):
        check_names(names, known, "new")
