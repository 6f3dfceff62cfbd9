// Names and CORINE colors of the classes, as bigearth_cube.nomenclature has them; a test compares the two.

/** The 19 classes, in order, each in the color of one of its CORINE classes. */
export const CLASSES_19: ReadonlyArray<readonly [name: string, color: string]> = [
  ["Urban fabric", "#ff0000"],
  ["Industrial or commercial units", "#cc4df2"],
  ["Arable land", "#ffffa8"],
  ["Permanent crops", "#f2a64d"],
  ["Pastures", "#e6e64d"],
  ["Complex cultivation patterns", "#ffe64d"],
  ["Land principally occupied by agriculture, with significant areas of natural vegetation", "#e6cc4d"],
  ["Agro-forestry areas", "#f2cca6"],
  ["Broad-leaved forest", "#80ff00"],
  ["Coniferous forest", "#00a600"],
  ["Mixed forest", "#4dff00"],
  ["Natural grassland and sparsely vegetated areas", "#ccf24d"],
  ["Moors, heathland and sclerophyllous vegetation", "#a6ff80"],
  ["Transitional woodland, shrub", "#a6f200"],
  ["Beaches, dunes, sands", "#e6e6e6"],
  ["Inland wetlands", "#a6a6ff"],
  ["Coastal wetlands", "#ccccff"],
  ["Inland waters", "#80f2e6"],
  ["Marine waters", "#e6f2ff"],
];

/** The 43 CORINE classes: code, name, color. */
export const CLASSES_43: ReadonlyArray<readonly [code: number, name: string, color: string]> = [
  [111, "Continuous urban fabric", "#e6004d"],
  [112, "Discontinuous urban fabric", "#ff0000"],
  [121, "Industrial or commercial units", "#cc4df2"],
  [122, "Road and rail networks and associated land", "#cc0000"],
  [123, "Port areas", "#e6cccc"],
  [124, "Airports", "#e6cce6"],
  [131, "Mineral extraction sites", "#a600cc"],
  [132, "Dump sites", "#a64d00"],
  [133, "Construction sites", "#ff4dff"],
  [141, "Green urban areas", "#ffa6ff"],
  [142, "Sport and leisure facilities", "#ffe6ff"],
  [211, "Non-irrigated arable land", "#ffffa8"],
  [212, "Permanently irrigated land", "#ffff00"],
  [213, "Rice fields", "#e6e600"],
  [221, "Vineyards", "#e68000"],
  [222, "Fruit trees and berry plantations", "#f2a64d"],
  [223, "Olive groves", "#e6a600"],
  [231, "Pastures", "#e6e64d"],
  [241, "Annual crops associated with permanent crops", "#ffe6a6"],
  [242, "Complex cultivation patterns", "#ffe64d"],
  [243, "Land principally occupied by agriculture, with significant areas of natural vegetation", "#e6cc4d"],
  [244, "Agro-forestry areas", "#f2cca6"],
  [311, "Broad-leaved forest", "#80ff00"],
  [312, "Coniferous forest", "#00a600"],
  [313, "Mixed forest", "#4dff00"],
  [321, "Natural grassland", "#ccf24d"],
  [322, "Moors and heathland", "#a6ff80"],
  [323, "Sclerophyllous vegetation", "#a6e64d"],
  [324, "Transitional woodland/shrub", "#a6f200"],
  [331, "Beaches, dunes, sands", "#e6e6e6"],
  [332, "Bare rock", "#cccccc"],
  [333, "Sparsely vegetated areas", "#ccffcc"],
  [334, "Burnt areas", "#000000"],
  [411, "Inland marshes", "#a6a6ff"],
  [412, "Peatbogs", "#4d4dff"],
  [421, "Salt marshes", "#ccccff"],
  [422, "Salines", "#e6e6ff"],
  [423, "Intertidal flats", "#a6a6e6"],
  [511, "Water courses", "#00ccf2"],
  [512, "Water bodies", "#80f2e6"],
  [521, "Coastal lagoons", "#00ffa6"],
  [522, "Estuaries", "#a6ffe6"],
  [523, "Sea and ocean", "#e6f2ff"],
];

const COLORS = new Map<string, string>([
  ...CLASSES_43.map(([, name, color]) => [name, color] as const),
  ...CLASSES_19,
]);

export const UNLABELED = "#8a8a8a";

export function colorOf(name: string | undefined): string {
  return (name && COLORS.get(name)) || UNLABELED;
}
