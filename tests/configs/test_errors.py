from configs.errors import first_line, nearest_name_hint


def test_a_hint_names_what_is_near_and_ends_its_sentence() -> None:
    assert nearest_name_hint("trian", ["train", "verify"]) == "; did you mean 'train'?"
    assert nearest_name_hint("xyzzy", ["train", "verify"]) == "."


def test_an_error_that_says_nothing_is_told_by_its_name() -> None:
    assert first_line(ValueError("  no header\nlong advice")) == "no header"
    assert first_line(KeyError()) == "KeyError"
