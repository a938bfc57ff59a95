// Which machines NVLink joins: devices of one domain use each other's memory, whatever machine they are in.
#pragma once
#include <string>

#include "device.h"

namespace rankmesh::cuda {

/** Names the domain that a device is in; empty where it is in none, or where nobody can say. Equal for devices that reach each other so. */
std::string DomainOf(const Device& device);

}  // namespace rankmesh::cuda
