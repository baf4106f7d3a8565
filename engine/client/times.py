"""How long both clients wait."""

CLOSE_S = 2.0  # a broker that is away has everything from its journal, but for the last word
SLACK_S = 5.0  # a node that gives up at the deadline has to be heard saying so
