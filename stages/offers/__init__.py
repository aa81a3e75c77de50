"""offers: what every smaller shape of every sublayer would cost the model's answers."""
