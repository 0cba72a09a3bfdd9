"""Write more.jsonl: 300 more dates in every locale of babel:dates, without targets, for more-answers.yaml."""

import datetime
import json
from pathlib import Path

from distill.tasks import embedded

rows = [row.values for row in embedded._date_rows(embedded._locale_files("babel:dates"))]
known, locales = {row["date"] for row in rows}, list(dict.fromkeys(row["locale"] for row in rows))
more: list[str] = []
number = 300
while len(more) < 300:
    day = (embedded._FIRST_DATE + datetime.timedelta(number * 22_573 % 36_525)).isoformat()
    number += 1
    if day not in known:
        more.append(day)
lines = [json.dumps({"locale": locale, "date": day}) for locale in locales for day in more]
Path("more.jsonl").write_text("\n".join(lines) + "\n")
