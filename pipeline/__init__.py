"""How a run is planned, cached, judged and told: the top layer."""
