setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
build();
if (isLive) readAddress();
byId("page").hidden = false; // before the first drawing, which measures the chart
draw();

// For the console and the tests.
window.explorer = { state, change, mainMap, attentionOf };
