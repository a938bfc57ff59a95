// The demo in a page: the same model, the same ranks, the same text as in Node, on the browser's own WebGPU.
import { fetchFolder, formatReport, runModel } from '../../dist/browser.js'

const element = (id) => document.getElementById(id)

/** Writes to the page and returns the report. */
async function write({ prompt, ranks, maxNewTokens }) {
  element('text').textContent = prompt
  element('report').textContent = ''
  const report = await runModel({
    folder: fetchFolder(new URL('../models/tiny-shakespeare/', import.meta.url)),
    ranks,
    prompt,
    maxNewTokens,
    onDevice: ({ name, description, software }) => {
      element('device').textContent = `${ranks} ranks on ${name}: ${description}${software ? ' (a software adapter: right, and slow)' : ''}`
    },
    onText: (text) => element('text').append(text),
  })
  element('report').textContent = formatReport(report)
  return report
}

element('form').addEventListener('submit', async (event) => {
  event.preventDefault()
  try {
    await write({ prompt: element('prompt').value, ranks: Number(element('ranks').value), maxNewTokens: Number(element('tokens').value) })
  } catch (error) {
    element('report').textContent = `${error.code ?? error.name}: ${error.message}`
  }
})

globalThis.write = write // for the page's test
