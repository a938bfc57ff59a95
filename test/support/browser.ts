// Starts the headless Chromium that an npm package carries, with the shared libraries it carries too where the system lacks them.
import { type Browser, chromium } from 'playwright-core'
import { unpacked } from '../../runtime/device/webgpu/software-vulkan.ts'

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
    return await start({ ...env, LD_LIBRARY_PATH: `${unpacked('al2023')}:${env.LD_LIBRARY_PATH ?? ''}` })
  } catch (error) {
    return `Chromium does not start here: ${/error while loading shared libraries:[^\n]*/.exec(String(error))?.[0] ?? String(error)}`
  }
}
