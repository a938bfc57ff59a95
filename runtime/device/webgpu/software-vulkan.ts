// Makes Vulkan loadable in this process: the system's, or the software driver (SwiftShader) inside the npm package @sparticuz/chromium.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { constants, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { brotliDecompressSync } from 'node:zlib'

const RTLD_NODELETE = 0x1000 // keeps the library mapped although it is no addon and Node closes it again

let system: { missing: string | undefined } | undefined

/** Why the system has no Vulkan library, or undefined where it has one (or where WebGPU does not stand on Vulkan). */
export function loadVulkan(): string | undefined {
  if (process.platform !== 'linux') return undefined
  // Asked once, before the software driver's own library is there to be taken for the system's.
  system ??= { missing: open('libvulkan.so.1').includes('cannot open shared object file') ? 'libvulkan.so.1 is not installed' : undefined }
  return system.missing
}

/**
 * Runs `use` while Vulkan has the software driver and no other; returns what it gives, or why there is no software driver. Where the system
 * has a Vulkan of its own, that is back afterwards.
 */
export async function withSoftwareVulkan<T>(use: () => Promise<T>): Promise<T | string> {
  if (process.platform !== 'linux' || process.arch !== 'x64') return `none is packaged for ${process.platform} ${process.arch}`
  const isOnly = loadVulkan() !== undefined
  const before = process.env.VK_ICD_FILENAMES
  try {
    const folder = unpacked('swiftshader')
    open(join(folder, 'libvulkan.so.1'))
    process.env.VK_ICD_FILENAMES = join(folder, 'vk_swiftshader_icd.json')
  } catch (error) {
    return (error instanceof Error ? error.message.split('\n')[0] : undefined) ?? String(error)
  }
  try {
    return await use()
  } finally {
    if (!isOnly && before === undefined) delete process.env.VK_ICD_FILENAMES
    else if (!isOnly) process.env.VK_ICD_FILENAMES = before
  }
}

/** Node refuses a library that is no addon, with a message; the library stays loaded all the same. */
function open(library: string): string {
  try {
    process.dlopen({ exports: {} }, library, constants.dlopen.RTLD_NOW | RTLD_NODELETE)
    return ''
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/**
 * The folder of the files that an archive of @sparticuz/chromium holds, unpacked on first use beside the package, or in a private
 * temporary folder where that cannot be written.
 */
export function unpacked(archiveName: string): string {
  const home = join(dirname(resolve('@sparticuz/chromium')), '..')
  const archive = join(home, 'bin', `${archiveName}.tar.br`)
  const version = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8')).version
  const folder = join(home, '..', '..', '.cache', 'rankmesh', `${archiveName}-${version}`)
  if (existsSync(folder)) return folder
  try {
    mkdirSync(dirname(folder), { recursive: true })
    const fresh = mkdtempSync(`${folder}-`)
    unpack(archive, fresh)
    try {
      renameSync(fresh, folder)
    } catch {
      rmSync(fresh, { recursive: true, force: true }) // another process was first
    }
    return folder
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EACCES' && (error as NodeJS.ErrnoException).code !== 'EROFS') throw error
    const fresh = mkdtempSync(join(tmpdir(), `rankmesh-${archiveName}-`))
    process.on('exit', () => rmSync(fresh, { recursive: true, force: true }))
    unpack(archive, fresh)
    return fresh
  }
}

/** Where a package is, seen from this file or, for a program that bundles it, from the working directory. */
function resolve(name: string): string {
  try {
    return createRequire(import.meta.url).resolve(name)
  } catch {
    return createRequire(join(process.cwd(), 'package.json')).resolve(name)
  }
}

/** Reads a brotli-compressed tar of plain files. */
function unpack(archive: string, folder: string): void {
  const tar = brotliDecompressSync(readFileSync(archive))
  for (let at = 0; at + 512 <= tar.length; ) {
    const name = tar.toString('utf8', at, at + 100).replace(/\0.*$/s, '')
    if (name === '') break
    const size = Number.parseInt(tar.toString('ascii', at + 124, at + 136), 8)
    const type = tar[at + 156]
    const isFile = type === 0 || type === 48
    if (isFile) writeFileSync(join(folder, name.replace(/^.*\//, '')), tar.subarray(at + 512, at + 512 + size), { mode: 0o755 })
    at += 512 + Math.ceil(size / 512) * 512
  }
}
