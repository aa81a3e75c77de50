"""What a run found, for people and machines: one record, and pages that are functions of it.

record.py    the record          compose.py      history → record
html.py      the dashboard       charts.py       its pictures
markdown.py  a summary           junit.py        for dashboards of tests
github.py    annotations         files.py        all of them, written
"""
