"""Questions asked of a method: one file a question; features are extracted once and kept."""
