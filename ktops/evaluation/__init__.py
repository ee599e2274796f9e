"""What `ktops eval` asks for and shows. The evaluating itself is the engine's."""
