// The same program in a page: the browser bundle writes the text that Node writes.
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { runModel } from '../../runtime/model/run.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { startBrowser } from '../support/browser.ts'

const browser = await startBrowser()
if (typeof browser === 'string') console.warn(`The browser test is skipped: ${browser}`)
let site: { url: string; close(): void }

beforeAll(async () => {
  const server = '../../examples/browser/serve.mjs' // plain JavaScript, without types
  site = await (await import(server)).serve()
})

afterAll(async () => {
  site.close()
  if (typeof browser !== 'string') await browser.close()
})

const prompt = 'First Citizen:\n'
const maxNewTokens = 60

it.skipIf(typeof browser === 'string')('dist/browser.js generates in a page what Node generates', async () => {
  if (typeof browser === 'string') return
  const page = await browser.newPage()
  const complaints: string[] = []
  page.on('pageerror', (error) => complaints.push(String(error)))
  page.on('console', (message) => message.type() === 'error' && !message.text().includes('favicon') && complaints.push(message.text()))
  await page.goto(`${site.url}/examples/browser/`)
  const writeInPage = `write({ prompt: ${JSON.stringify(prompt)}, ranks: 4, maxNewTokens: ${maxNewTokens} })`
  const inPage = (await page.evaluate(writeInPage)) as { text: string; newTokens: number; perToken: Record<string, number> }
  const folder = fileFolder(join(import.meta.dirname, '../../examples/models/tiny-shakespeare'))
  const inNode = await runModel({ folder, ranks: 4, prompt, maxNewTokens })
  expect(inPage.text).toBe(inNode.text)
  expect(inPage.newTokens).toBe(maxNewTokens)
  expect(inPage.perToken).toMatchObject({ submits: 1, maps: 1, fused: 9 })
  expect(await page.locator('#text').textContent()).toBe(prompt + inNode.text)
  expect(complaints.filter((text) => !text.includes('404'))).toEqual([])
})
