// Search runs in a worker, which browsers refuse to pages that are opened as files. There, a frame
// takes its place: it runs the worker's script, and both sides get each other's messages.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inner = frame.contentWindow;
      const loaded = (address) =>
        new Promise((done) => {
          const script = this.inner.document.createElement("script");
          script.src = address;
          script.onload = done;
          this.inner.document.body.append(script);
        });
      this.inner.importScripts = async (...urls) => {
        for (const each of urls) await loaded(each);
      };
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      loaded(new URL(url, location.href).href).then(() => {
        this.ready = true;
        this.waiting.forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (this.ready) this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };
}
