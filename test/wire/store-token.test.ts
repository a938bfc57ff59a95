// The token that ranks share: from the environment, or a file that only this user can read.
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { rankToken } from '../../runtime/comm/wire/token-node.ts'

let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rankmesh-token-'))
  path = join(folder, 'rankmesh', 'token')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const token = (): string => rankToken({ XDG_CONFIG_HOME: folder })

describe('rankToken', () => {
  it('is what the environment says', () => {
    expect(rankToken({ RANKMESH_TOKEN: 'eight ch', XDG_CONFIG_HOME: folder })).toBe('eight ch')
    expect(readdirSync(folder)).toEqual([])
  })

  it('refuses a token that can be guessed', () => {
    expect(() => rankToken({ RANKMESH_TOKEN: 'short' })).toThrow(/RANKMESH_TOKEN.*5/)
  })

  it('makes a file of its own on first use, readable by this user alone', () => {
    const first = token()
    expect(first).toMatch(/^[0-9a-f]{64}$/)
    expect(statSync(path).mode & 0o777).toBe(0o600)
    expect(statSync(join(folder, 'rankmesh')).mode & 0o777).toBe(0o700)
    expect(token()).toBe(first)
    expect(readdirSync(join(folder, 'rankmesh'))).toEqual(['token'])
    rmSync(path)
    expect(token()).not.toBe(first)
  })

  for (const mode of [0o640, 0o604, 0o620, 0o666]) {
    it(`refuses a file of mode ${mode.toString(8)}`, () => {
      token()
      chmodSync(path, mode)
      expect(token).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: expect.stringContaining('chmod 600') }))
    })
  }

  it('refuses a link', () => {
    mkdirSync(join(folder, 'rankmesh'))
    writeFileSync(join(folder, 'elsewhere'), 'x'.repeat(64), { mode: 0o600 })
    symlinkSync(join(folder, 'elsewhere'), path)
    expect(token).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
  })

  it('refuses an empty file', () => {
    token()
    writeFileSync(path, '\n')
    expect(token).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
  })
})
