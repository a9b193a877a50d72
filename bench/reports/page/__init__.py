"""Write a report as one page of HTML: the answer first, everything else folded beneath it."""

from bench.reports.page.whole import html as html
