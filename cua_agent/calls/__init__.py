"""Reading the calls that models write: where a call stands, its JSON, and what it asks for."""
