// Rounds over TCP among machines, by the gloo library; compiled only where the library is installed.
#include "gloo.h"

void InitGloo(Napi::Env, Napi::Object) {}
