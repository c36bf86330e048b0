"""One page about runs: what was trained, how it went, what the policies do.

runs -> groups -> curves -> plots: from run directories to figures. returns: what episodes played now came to.
page: one HTML file from all of it, which needs no network; its template, style and script lie in page/.
"""
