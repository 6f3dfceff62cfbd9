export const number = (value: number): string => value.toLocaleString("en-US");

export const day = (datetime: string): string => datetime.slice(0, 10);

export const percent = (share: number): string =>
  share >= 0.0995 ? `${Math.round(share * 100)} %` : `${(share * 100).toFixed(1)} %`;

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** "2017-06-01T00:00:00Z" as "Jun 2017". */
export const month = (key: string): string => `${MONTHS[Number(key.slice(5, 7)) - 1] ?? "?"} ${key.slice(0, 4)}`;
