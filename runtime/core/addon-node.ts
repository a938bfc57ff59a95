// Finds and loads the native addon, and says what was tried: everything works without it, some of it slower.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Addon, Features } from './addon.ts'

export interface AddonReport {
  /** Where the addon was loaded from; null where none was. */
  path: string | null
  /** What the loaded addon offers. */
  features: Features | null
  /** What was tried, in order, and what came of it. */
  tried: readonly { what: string; outcome: string }[]
  /** The command that brings the addon, or brings it up to date. */
  command: string
}

/** What every build of this version exports; one that lacks some is of another version. */
const EXPORTS: readonly (keyof Addon)[] = [
  'features',
  'post',
  'wait',
  'waitAsync',
  'ring',
  'createReducer',
  'sumFloat32',
  'createSegment',
  'openSegment',
]

let found: { addon: Addon | null; report: AddonReport } | undefined

/** The native addon, or null where there is none; looks for it once. RANKMESH_ADDON is `off`, or the path of the one to load. */
export function loadAddon(): Addon | null {
  found ??= find()
  return found.addon
}

/** What came of loading the addon. */
export function addonReport(): AddonReport {
  found ??= find()
  return found.report
}

function find(): { addon: Addon | null; report: AddonReport } {
  const root = packageRoot()
  const inPackage = /[\\/]node_modules[\\/]/.test(root)
  const command = inPackage
    ? 'npm install --no-save cmake-js@8.0.0 node-addon-api@8.9.2 node-api-headers@1.9.0 && npm explore rankmesh -- npx cmake-js build'
    : 'npm run build:native'
  const tried: { what: string; outcome: string }[] = []
  const setting = process.env.RANKMESH_ADDON
  if (setting === 'off') {
    tried.push({ what: 'RANKMESH_ADDON=off', outcome: 'not loaded, as asked for' })
    return { addon: null, report: { path: null, features: null, tried, command } }
  }
  const places = setting
    ? [resolve(setting)]
    : [join(root, 'build/Release/rankmesh.node'), `@rankmesh/native-${process.platform}-${process.arch}`]
  const require = createRequire(join(root, 'package.json'))
  for (const place of places) {
    try {
      const path = require.resolve(place)
      const addon = require(path) as Addon
      const lacking = EXPORTS.filter((name) => typeof addon[name] !== 'function')
      if (lacking.length === 0) {
        tried.push({ what: place, outcome: 'loaded' })
        return { addon, report: { path, features: addon.features(), tried, command } }
      }
      tried.push({ what: place, outcome: `of another version: it lacks ${lacking.join(', ')}` })
    } catch (error) {
      const missing = (error as { code?: string }).code === 'MODULE_NOT_FOUND'
      tried.push({ what: place, outcome: missing ? 'not there' : error instanceof Error ? error.message : String(error) })
    }
  }
  return { addon: null, report: { path: null, features: null, tried, command } }
}

/** The folder of the package: the source lies in runtime/core, the bundle in dist. */
function packageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url))
  for (let folder = start; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder
    if (folder === dirname(folder)) return start
  }
}
