setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
build();
if (isLive) readAddress();
draw();
byId("page").hidden = false;

// For the console and the tests.
window.explorer = { state, change, mainMap, attentionOf };
