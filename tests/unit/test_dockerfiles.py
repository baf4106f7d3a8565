"""Dockerfiles become definitions that mean the same, or are refused by the line that cannot."""

from collections.abc import Mapping

import pytest

from nodes.sandboxes.dockerfiles import converted
from nodes.sandboxes.images import ImageError

NOTHING: Mapping[str, str] = {}
WHOLE = """\
# syntax=docker/dockerfile:1
ARG base=debian:12
FROM ${base}
LABEL org.me="x y" \\
      other=z
ENV A=1 B="two words"
WORKDIR /app
COPY requirements.txt src/ /app/
# why
RUN echo "it's" && \\
    # inside
    cd /nowhere
EXPOSE 80
USER nobody
CMD ["sleep", "9"]
"""
WRITTEN = """\
Bootstrap: docker
From: mine:1
Stage: stage-1

%files
requirements.txt /app/
src/ /app/
%labels
org.me x y
other z
%post
export base=mine:1
export A=1
export B="two words"
mkdir -p /app
cd /app
sh -c 'echo "it'"'"'s" &&  cd /nowhere'
%environment
export A=1
export B="two words"
%runscript
exec /bin/bash "$@"
%startscript
exec /bin/bash "$@"
"""


def test_a_dockerfile_becomes_a_definition() -> None:
    assert converted(WHOLE, {"base": "mine:1"}) == WRITTEN


def test_stages_may_copy_from_earlier_ones_and_begin_with_what_lies_here() -> None:
    text = "FROM pandas AS one\nFROM localimage:base.sif\nCOPY --from=one /a /b\n"
    found = converted(text, NOTHING)
    assert "Bootstrap: docker\nFrom: pandas\nStage: one\n" in found
    assert "Bootstrap: localimage\nFrom: base.sif\nStage: stage-2\n" in found
    assert "%files from one\n/a /b\n" in found


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('RUN ["a"]', "plain shell command"),
        ("RUN --mount=type=cache,target=/x a", "plain shell command"),
        ("RUN cat <<X\nUSER\nX", "plain shell command"),
        ("COPY --chown=a:b q /w", "options"),
        ('COPY ["a b", "/c"]', "options"),
        ("COPY *.py /c/", "patterns"),
        ("COPY a b", "whole path"),
        ("COPY --from=nobody /a /b", "no earlier stage"),
        ("ADD http://x.org/y /z", "use RUN"),
        ("ADD a.tar.gz /z", "use RUN"),
        ("WORKDIR app", "whole path"),
        ("USER nobody\nRUN true", "built as root"),
        ('SHELL ["a"]', "no such instruction"),
        ("ONBUILD RUN a", "no such instruction"),
        ("FROM stage-1", "earlier stage"),
        ("FROM --platform=x y", "no option"),
        ("RUN echo {{ x }}", "no counterpart"),
        ("ARG open", "--arg open="),
        ("ARG x=a b", "one name in a line"),
        ("ENV A b c", "cannot read"),
    ],
)
def test_what_has_no_counterpart_is_refused(line: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        converted(f"FROM a\n{line}\n", NOTHING)


def test_a_value_that_nothing_asks_for_and_a_file_without_from_are_refused() -> None:
    with pytest.raises(ImageError, match="no argument mirror; there are: base"):
        converted(WHOLE, {"mirror": "m"})
    with pytest.raises(ImageError, match="begins with FROM"):
        converted("RUN true\n", NOTHING)
