"""Many runs as one table: cells trained and measured one after another, means and deviations over seeds."""
