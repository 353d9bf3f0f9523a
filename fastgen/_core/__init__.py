"""The cellar: what every wing stands on and nothing here knows."""
