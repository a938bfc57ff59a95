// All functions that ops_list.h names.
#pragma once
#include "attention.cuh"
#include "elementwise.cuh"
#include "embedding.cuh"
#include "matmul.cuh"
#include "matmul_tree.cuh"
#include "matvec.cuh"
#include "portable.cuh"
#include "reduce.cuh"
#include "rope.cuh"
#include "rows.cuh"
#include "top_k.cuh"
