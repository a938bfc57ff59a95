// Four emulated CUDA devices that have multicasts. Import it before cuda.ts, which takes these settings.
process.env.RANKMESH_CUDA_DOUBLE = 'devices 4;multicast 1'
