"""Reports of toy runs, and what an HTML parser finds in their pages."""

from dataclasses import replace
from html.parser import HTMLParser

from toy_runs import SMALL, toy

from parnl.learn import judging, kept, report, tasks, training

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page's tags, texts, tables and pictures; fails where a tag is not closed in its turn."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.tables, self.attributes, self.words = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    def table(self, *heads):
        """The rows of the one table with these words above its columns."""
        (found,) = (rows for rows in self.tables if tuple(rows[0]) == heads)
        return found[1:]


def run_in(folder, dataset=None, **changes):
    """A run on toy data, as `parnl train` leaves it."""
    config = replace(SMALL, **({"epochs": 2} | changes))
    dataset = dataset or toy()
    result = training.fit(config, dataset, folder)
    task, scale = training.TASKS[config.task], tasks.Scale.of(dataset.train.labels)
    test = judging.compare(result.trainer, dataset.test, config.batch, task=task, scale=scale)
    kept.keep(folder, config, dataset, result.history, test, scale)
    return dataset, result, test


def written(folder):
    source = report.write(folder).read_text("utf-8")
    return source, Page(source)
