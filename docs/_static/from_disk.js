/* Browsers let pages on the disk fetch nothing, so that the search lists its results there without their first lines. */
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
