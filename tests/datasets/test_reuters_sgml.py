from __future__ import annotations

from pathlib import Path

from llmcls.prepare import main
from tests.helpers import read_rows

SGML = """<!DOCTYPE lewis SYSTEM "lewis.dtd">
<REUTERS TOPICS="YES" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="5544" NEWID="1">
<DATE>26-FEB-1987 15:01:01.79</DATE><TOPICS><D>money-fx</D><D>earn</D></TOPICS><PLACES><D>usa</D></PLACES>
<TEXT>&#2;
<TITLE>BAHIA &lt;BHI&gt; REVIEW</TITLE><DATELINE>    SALVADOR, Feb 26 - </DATELINE><BODY>Showers continued
    throughout the week &amp; beyond.
 Reuter
&#3;</BODY></TEXT>
</REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="TEST" CGISPLIT="TRAINING-SET" OLDID="1" NEWID="14826">
<TOPICS><D>earn</D></TOPICS><TEXT TYPE="BRIEF">&#2;
******<TITLE>BLAH AGREES TO MERGE</TITLE>Blah Blah
&#3;</TEXT></REUTERS>
<REUTERS TOPICS="NO" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="2" NEWID="3">
<TOPICS></TOPICS><TEXT><TITLE>not of the split</TITLE></TEXT></REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="NOT-USED" CGISPLIT="TRAINING-SET" OLDID="2" NEWID="4">
<TOPICS><D>earn</D></TOPICS><TEXT><TITLE>unused</TITLE></TEXT></REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="5" NEWID="6">
<TOPICS><D>earn</D></TOPICS><TEXT><TITLE>SECOND</TITLE><BODY>More.</BODY></TEXT></REUTERS>
"""


def test_reuters_is_read_from_its_own_files(tmp_path: Path) -> None:
    source = tmp_path / "sgml"
    source.mkdir()
    (source / "reut2-000.sgm").write_text(SGML, encoding="latin-1")
    main(["reuters", "--out", str(tmp_path / "out"), "--source", str(source)])
    rows = read_rows(tmp_path / "out" / "train.csv") + read_rows(tmp_path / "out" / "validation.csv")
    first = next(row for row in rows if row["uid"] == "1")
    assert first == {
        "uid": "1", "title": "BAHIA <BHI> REVIEW", "body": "Showers continued throughout the week & beyond.",
        "earn": "1", "money_fx": "1",
    }  # fmt: skip
    assert {row["uid"] for row in rows} == {"1", "6"}
    (test,) = read_rows(tmp_path / "out" / "test.csv")
    assert (test["uid"], test["title"], test["earn"]) == ("14826", "BLAH AGREES TO MERGE", "1")
    assert "Blah Blah" in test["body"]
