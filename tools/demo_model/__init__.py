"""How the embedded demo model is made: its tokenizer, its network, its lessons, its files and its examination."""
