// Browsers refuse workers on pages opened from disk. There the script of the search runs in a hidden frame of this page instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.onmessage = this.onerror = this.onmessageerror = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.(new MessageEvent("message", { data })))
      this.ready = new Promise((resolve, reject) => {
        const script = inside.document.createElement("script")
        script.src = new URL(url, document.baseURI).href
        script.onload = resolve
        script.onerror = () => reject(new Error(`cannot load ${script.src}`))
        inside.document.head.append(script)
      })
      this.ready.catch((error) => this.onerror?.(new ErrorEvent("error", { error, cancelable: true })))
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow?.onmessage?.({ data }), () => {})
    }
    terminate() {
      this.frame.remove()
    }
  }
}
