// Rounds over TCP among machines, by the gloo library: `connectGloo` of the addon.
#pragma once
#include <napi.h>

void InitGloo(Napi::Env env, Napi::Object exports);
