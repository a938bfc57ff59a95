// Starts the headless Chromium that an npm package carries, with the shared libraries it carries too where the system lacks them.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { brotliDecompressSync } from 'node:zlib'
import { type Browser, chromium } from 'playwright-core'

const ARGS = [
  '--no-sandbox',
  '--enable-unsafe-webgpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/** A browser with WebGPU, or the reason why there is none on this machine. */
export async function startBrowser(): Promise<Browser | string> {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    return `@sparticuz/chromium has no browser for ${process.platform} ${process.arch}`
  const { default: packaged } = await import('@sparticuz/chromium')
  const executablePath = await packaged.executablePath()
  const start = (env: Record<string, string>): Promise<Browser> => chromium.launch({ executablePath, headless: true, args: ARGS, env })
  const env = { ...(process.env as Record<string, string>) }
  try {
    return await start(env)
  } catch (error) {
    if (!String(error).includes('shared libraries')) throw error
  }
  try {
    return await start({ ...env, LD_LIBRARY_PATH: `${carriedLibraries()}:${env.LD_LIBRARY_PATH ?? ''}` })
  } catch (error) {
    return `Chromium does not start here: ${/error while loading shared libraries:[^\n]*/.exec(String(error))?.[0] ?? String(error)}`
  }
}

function carriedLibraries(): string {
  const home = join(dirname(createRequire(import.meta.url).resolve('@sparticuz/chromium')), '..')
  const folder = join(home, '..', '..', '.cache', 'rankmesh', 'chromium-libraries')
  if (!existsSync(folder)) {
    mkdirSync(folder, { recursive: true })
    const tar = brotliDecompressSync(readFileSync(join(home, 'bin', 'al2023.tar.br')))
    for (let at = 0; at + 512 <= tar.length; ) {
      const name = tar.toString('utf8', at, at + 100).replace(/\0.*$/s, '')
      if (name === '') break
      const size = Number.parseInt(tar.toString('ascii', at + 124, at + 136), 8) || 0
      if (name.includes('.so'))
        writeFileSync(join(folder, name.replace(/^.*\//, '')), tar.subarray(at + 512, at + 512 + size), { mode: 0o755 })
      at += 512 + Math.ceil(size / 512) * 512
    }
  }
  return folder
}
