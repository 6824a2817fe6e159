"""The paper's tables in miniature: tables as data, runs by what decides them, verdicts on claims, and the page."""
