"""What `ktops bench` measures, and how it shows it. The measuring itself is the engine's."""
