// Builds the native addon with cmake-js. `--if-possible`: only where sources are newer than the build, and never fails for want of tools.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..')
const built = join(root, 'build/Release/rankmesh.node')
const kernels = join(root, 'build/Release/rankmesh.fatbin')
const ifPossible = process.argv.includes('--if-possible')

/** Why the addon cannot be built here; undefined where it can. */
function obstacle() {
  for (const [what, tools] of [
    ['CMake', ['cmake']],
    ['a C++ compiler', process.platform === 'win32' ? ['cl', 'g++', 'clang++'] : [process.env.CXX, 'c++', 'g++', 'clang++']],
  ]) {
    const found = tools.some((tool) => tool && !spawnSync(tool, ['--version'], { stdio: 'ignore' }).error)
    if (!found) return `${what} is not there`
  }
  try {
    createRequire(import.meta.url).resolve('cmake-js/package.json')
  } catch {
    return 'cmake-js is not installed (npm install)'
  }
}

/** Whether a file is there, and newer than CMake's files and all sources with such names. */
function isUpToDate(file, names) {
  if (!existsSync(file)) return false
  const files = readdirSync(join(root, 'native'), { recursive: true }).filter((name) => names.test(name))
  const sources = ['CMakeLists.txt', ...files.map((name) => join('native', name))]
  const time = statSync(file).mtimeMs
  return sources.every((name) => statSync(join(root, name)).mtimeMs <= time)
}

/** CUDA kernels, where some were built: they must fit the addon. */
const areKernelsUpToDate = () => !existsSync(kernels) || isUpToDate(kernels, /cuda.*\.(cu|cuh|h)$/)

if (ifPossible && isUpToDate(built, /\.(cc|h|inc|cmake)$/) && areKernelsUpToDate()) process.exit(0)
const missing = obstacle()
if (missing) {
  console.error(`The native addon is not built: ${missing}`)
  process.exit(ifPossible ? 0 : 1)
}
const cmakeJs = join(createRequire(import.meta.url).resolve('cmake-js/package.json'), '../bin/cmake-js')
// Kernels for GPUs take a minute, and tests without a GPU need none.
const spare =
  ifPossible &&
  !existsSync(kernels) &&
  process.env.RANKMESH_CUDA_ARCHS === undefined &&
  spawnSync('nvidia-smi', { stdio: 'ignore' }).status !== 0
const env = spare ? { ...process.env, RANKMESH_CUDA_ARCHS: 'off' } : process.env
// `build` alone would not look for gloo again after the first time.
for (const command of ['configure', 'build']) {
  const { status } = spawnSync(process.execPath, [cmakeJs, command, '--log-level', 'warn'], { cwd: root, stdio: 'inherit', env })
  if (status !== 0) process.exit(status ?? 1)
}
