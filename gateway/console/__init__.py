"""The console: approvals in the browser, rendered on the server, without script (APPR-10)."""
