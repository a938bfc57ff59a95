// How the doubles of other libraries give work to the emulated devices' streams.
#pragma once

extern "C" {
/**
 * Adds work to a stream of the current context; gives a CUresult. `step` is called on the machine's thread, when the stream has come to it,
 * until it returns 1 (done) or an error (a CUresult, negated, that the device is lost to); 0 is for not yet. While a stream is captured,
 * the work is part of the graph, and done each time that it is launched: `step` must be able to begin again. Then `drop`: neither calls
 * the driver. `what` is a static string.
 */
int rankmesh_double_enqueue(void* stream, const char* what, int (*step)(void* data), void (*drop)(void* data), void* data);

/** Says loudly what a program has done wrong, and counts it. */
void rankmesh_double_report(const char* what);

/** Counts a call of a function, and gives the error that a test has planted for it: 0 for none. */
int rankmesh_double_entered(const char* function);
}
