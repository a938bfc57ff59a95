// Four emulated CUDA devices that do not reach each other's memory. Import it before cuda.ts, which takes these settings.
process.env.RANKMESH_CUDA_DOUBLE = 'devices 4;peers 0'
