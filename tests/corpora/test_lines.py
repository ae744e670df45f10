"""Reading lines with any line endings. test_odd_input.py tests unusual characters."""

from corpus_files import FILES, load


def test_crlf_a_byte_order_mark_and_spaces_on_a_blank_line_do_not_change_the_rows(tmp_path):
    plain = load(tmp_path / "plain", "ner")
    changed = {
        name: b"\xef\xbb\xbf" + content.replace(b"\n\n", b"\n  \n").replace(b"\n", b"\r\n")
        for name, content in FILES["ner"].items()
    }
    assert load(tmp_path / "changed", "ner", changed) == plain
